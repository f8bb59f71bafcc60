"""The grader's marks: a cheat gets no points, and a bad answer costs its own question alone."""

import os
import pickle
import sys
import tempfile
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from grading import sandbox as sandboxes
from grading import wire
from grading.conversation import Answer
from grading.marking import mark
from grading.sandbox import Limits, Sandbox
from grading.submission import Submission

import minislice
from minislice.teaching.assignments.a3 import A3
from minislice.teaching.assignments.exercise import Assignment, Case, MutationQuestion, Question
from minislice.teaching.assignments.forms import Array
from minislice.teaching.assignments.judging import Places
from minislice.teaching.assignments.m1 import M1

LIMITS = Limits(memory=1 << 30, cpu=1, wall=20)
SECRET = b"the secret of this course"
GIVEN = [("given", "import numpy as np")]


def _question(name, expected):
    return Question(
        name=name,
        points=5,
        minutes=1,
        difficulty=1,
        text="",
        hints=(),
        cases=lambda rng: [Case({"n": n}, {"x": rng.standard_normal(n)}) for n in (2, 3)],
        returns=lambda arguments: Array("y", arguments["x"].shape),
        judge=lambda arguments, result: Places().add("y", expected(arguments["x"]), result).failure(),
    )


class QuickCheck(MutationQuestion):
    """A student's check is tried less often here than in a course."""

    reference_seeds, mutant_seeds = 4, 2


def twice(x, mark="the reference's own"):
    return 2 * x


def thrice(x, mark="the mutant's own"):
    return 3 * x


CHECK = QuickCheck(
    name="check",
    points=4,
    minutes=1,
    difficulty=1,
    text="",
    hints=(),
    takes={"x": "n"},
    reference=twice,
    shown={"triples": thrice},
    hidden={"negative": lambda x: 2 * np.abs(x), "long": lambda x: 2 * x + (len(x) > 3)},
)
TOY = Assignment(
    name="toy",
    title="Toy",
    goal="",
    before="",
    difficulty=1,
    questions=(_question("double", lambda x: 2 * x), _question("square", lambda x: x**2), CHECK),
)
RIGHT = {"toy_double": "def double(x):\n    return 2 * x", "toy_square": "def square(x):\n    return x * x"}


@pytest.fixture(scope="module", params=["isolated", "open"])
def sandbox(request):
    """With all the isolation there is here, and with none but limits: whoever judges doesn't rely on it."""
    found = Sandbox.best(LIMITS, [Path(__file__).resolve()], request.param == "isolated")
    if request.param == "isolated" and not found.isolated:
        pytest.skip(f"this system has no isolation to try: {found.refused}")
    return found


@pytest.fixture(scope="module")
def best():
    """With all the isolation there is here."""
    return Sandbox.best(LIMITS, [Path(__file__).resolve()])


@pytest.fixture(scope="module")
def isolated():
    """The isolation, and a course's folder that it must hide; nothing else is in the way."""
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        course.chmod(0o755)
        for name in ("gradebook.db", "secret", "source/toy/toy.ipynb", "submitted/ann/toy/toy.ipynb"):
            (course / name).parent.mkdir(parents=True, exist_ok=True)
            (course / name).write_text("the answer is 42")
            (course / name).chmod(0o644)
        found = Sandbox.best(LIMITS, [course])
        if not found.isolated:
            pytest.skip(f"this system has no isolation to try: {found.refused}")
        yield found, course


def marked(sandbox, code, name="double", others=RIGHT):
    """The mark of one answer in a submission whose other answers are right."""
    answers = {**others, f"toy_{name}": textwrap.dedent(code)}
    return mark(TOY, TOY.question(name), Submission(answers), GIVEN, sandbox, SECRET)


def answered(sandbox, code, *arguments):
    """What the function f of some code returned in the sandbox."""
    answer = sandbox.call([*GIVEN, ("cell", textwrap.dedent(code))], "f", arguments)
    assert answer.kind == "returned", answer
    return answer.result


# Right and wrong answers


def test_right_answers_pass(sandbox):
    for name in ("double", "square"):
        assert mark(TOY, TOY.question(name), Submission(RIGHT), GIVEN, sandbox, SECRET).share == 1
    loop = """
        def double(x):
            y = np.zeros(len(x))
            for i in range(len(x)):
                y[i] = x[i] + x[i]
            return y
        """
    assert marked(sandbox, loop).lines == ("TOY.double  ok, 2 cases",)
    assert marked(sandbox, "%matplotlib inline\n!pip list\ndef double(x):\n    return x + x").status == "passed"


def test_an_answer_may_use_an_earlier_one(best):
    assert marked(best, "def square(x):\n    return double(x) * x / 2", "square").status == "passed"


def test_a_slip_in_one_function_costs_its_own_points_alone(best):
    slip = {**RIGHT, "toy_double": "def half(x):\n    return x / 2\n\ndef double(x):\n    return 3 * x"}
    answers = Submission({**slip, "toy_square": "def square(x):\n    return double(x) * half(x)"})
    for name, share in (("double", 0), ("square", 1)):
        assert mark(TOY, TOY.question(name), answers, GIVEN, best, SECRET, RIGHT).share == share
    assert mark(TOY, TOY.question("square"), answers, GIVEN, best, SECRET).share == 0
    own = Submission({"toy_double": "def double(x, twice):\n    return x * 2 if twice else x"})
    own = Submission({**own.answers, "toy_square": "def square(x):\n    return double(x, True) * x / 2"})
    assert mark(TOY, TOY.question("square"), own, GIVEN, best, SECRET, RIGHT).share == 1


def test_parts_that_are_right_have_their_points(best):
    """A3, where the adapters are forgotten: 12 of 15 points."""
    answer = """
        def rotate(weights, Q):
            new = dict(weights)
            for name, turn in (("W_embd", Q[0]), ("W_pos", Q[0]), ("W_out", Q[1:]), ("W_out2", Q[1:])):
                new[name] = None if new[name] is None else new[name] @ turn
            for name in ("b_out", "b_out2"):
                new[name] = None if new[name] is None else (new[name][:, None] @ Q[1:])[:, 0]
            new["W_in"] = Q[:-1].transpose(0, 2, 1) @ new["W_in"]
            return {**new, "W_head": Q[-1].T @ new["W_head"]}, None
        """
    handed_in = Submission({"a3_rotate": textwrap.dedent(answer)})
    found = mark(A3, A3.question("rotate"), handed_in, GIVEN, best, SECRET)
    assert (found.share, found.status) == (12 / 15, "partial")
    assert found.lines[1] == "S: expected float64 [2, 3, 3], got None"


def test_a_wrong_answer_is_told_where_but_no_number_of_the_case(best):
    found = marked(best, "def double(x):\n    return np.where(np.arange(len(x)) == 1, x, 2 * x)")
    assert (found.share, found.status) == (0, "failed")
    assert found.lines == (
        "TOY.double  FAILED at case 1 of 2  (n=2)",
        "y: first difference at [1]",
    )


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("def double(x):\n    raise NotImplementedError()", "unanswered", "not written yet"),
        ("double = 3", "unanswered", "defines no function double"),
        ("def double(x):\n    return y + 1", "failed", "line 2, `return y + 1`: NameError"),
        ("def double(x)\n    return 2 * x", "failed", "line 1, `def double(x)`: SyntaxError"),
        ("def double(x):\n    return 2 * x[:1]", "failed", "expected float64 [2], got float64 [1]"),
        ("def double(x):\n    x *= 2\n    return x", "failed", "changes its argument"),
        ("def double(x):\n    return x * float('nan')", "failed", "NaN at [0]"),
        ("def double(x):\n    return lambda: 2", "failed", "must be made of None, bool"),
        ("def double(x):\n    return [10**400]", "failed", "must be made of None, bool"),
        ("def double(x):\n    return np.zeros(10**7)", "failed", "must be made of None, bool"),
        ("def double(x):\n    raise ValueError(str(x))", "failed", "ValueError"),
        ("def double(x):\r    return y  # \x0b<b>", "failed", "line 2, `return y  #  <b>`: NameError"),
        ("def double(x):\n    raise type(f'E{x[0]}', (Exception,), {})", "failed", "an exception"),
    ],
)
def test_what_is_wrong_is_said_in_order(best, code, status, words):
    found = marked(best, code)
    assert (found.share, found.status) == (0, status)
    assert words in "; ".join(found.lines)
    hidden = TOY.question("double").cases(np.random.default_rng(_seed_of("toy_double")))[0].arguments["x"]
    assert str(hidden[0])[:4] not in "; ".join(found.lines)


def _seed_of(*names):
    from grading.marking import _seed

    return _seed(SECRET, *names)


def test_hidden_cases_depend_on_the_secret_and_the_question():
    seeds = {_seed_of("toy_double"), _seed_of("toy_square"), _seed_of("toy_check", "0"), _seed_of("toy_check", "1")}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


# Checks written by students


GOOD_CHECK = """
def check(candidate, rng):
    x = rng.standard_normal(5)
    assert np.allclose(candidate(x), 2 * x)
"""


@pytest.mark.parametrize(
    ("code", "share", "words"),
    [
        (GOOD_CHECK, 1, "kills 1 of 1 shown and 2 of 2 hidden"),
        (GOOD_CHECK.replace("(5)", "(2) - 9"), 2 / 3, "kills 1 of 1 shown and 1 of 2 hidden"),
        ("def check(candidate, rng):\n    assert candidate(np.ones(2))[0] == 2", 1 / 3, "0 of 2 hidden"),
        ("def check(candidate, rng):\n    pass", 0, "kills 0 of 1 shown and 0 of 2 hidden"),
        ("def check(candidate, rng):\n    raise ValueError", 0, "it raises on the right function"),
        ("def check(candidate, rng):\n    assert rng.random() < 0.9", 0, "it raises on the right function"),
        ("import os\ndef check(candidate, rng):\n    os._exit(1)", 0, "the process ended"),
        ("def check(candidate, rng):\n    candidate(open)", 0, "it raises on the right function"),
        ("def check(candidate, rng):\n    candidate(np.ones(10**5))", 0, "it raises on the right function"),
    ],
)
def test_a_check_gets_points_for_what_it_rejects(best, code, share, words):
    found = marked(best, code, "check")
    assert found.share == pytest.approx(share)
    assert words in "; ".join(found.lines)


def test_a_check_can_not_look_at_the_candidate_but_only_call_it(best):
    code = """
    def check(candidate, rng):
        import gc
        functions = [o for o in gc.get_objects() if type(o).__name__ == "function"]
        assert candidate in functions
        assert not any("'s own" in str(f.__defaults__) for f in functions)
        assert candidate(np.ones(2))[0] == 2
    """
    assert marked(best, code, "check").share == pytest.approx(1 / 3)


def test_a_check_that_counts_its_calls_gets_nothing():
    """It could, by what the system keeps in memory of a file that it reads; here the sandbox counts for it."""

    class Counting(Sandbox):
        calls = 0

        def call(self, cells, function, **what):
            self.calls += 1
            return Answer("returned" if self.calls <= CHECK.reference_seeds else "raised", name="AssertionError")

    assert marked(Counting(), GOOD_CHECK, "check").share == 0


@pytest.mark.parametrize("question", ["", "np.ones(2), 1, 2", "'x'", "np.ones((2, 2))", "np.ones(2000)"])
def test_an_exception_does_not_say_which_candidate_raised_it(best, question):
    code = f"""
    def check(candidate, rng):
        try:
            candidate({question})
        except (TypeError, ValueError) as error:
            assert not any(word in str(error) for word in ("thrice", "lambda"))
    """
    assert marked(best, code, "check").share == 0


def test_a_question_can_not_fill_the_grader_s_memory(best):
    code = """
    def check(candidate, rng):
        n = np.ones((900, 1))
        candidate(np.ones((1, 40)), None, np.ones((40, 1)), np.ones(1), n, n)
    """
    tracemalloc.start()
    found = mark(M1, M1.questions[0], Submission({"m1_check": textwrap.dedent(code)}), GIVEN, best, SECRET)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.share == 0 and peak < 1 << 24


# Cheats that need nothing but Python


CHEATS = {
    "patched libraries": """
        np.allclose = np.array_equal = np.isclose = lambda *a, **k: True
        np.abs = np.asarray = lambda *a, **k: np.zeros(1)
        def double(x):
            return x
        """,
    "patched builtins": """
        import builtins
        builtins.all = builtins.any = builtins.abs = lambda *a: True
        builtins.isinstance = lambda *a: True
        builtins.type = lambda *a: np.ndarray
        def double(x):
            return x
        """,
    "os._exit(0) in the function": "import os\ndef double(x):\n    os._exit(0)",
    "os._exit(0) in the cell": "import os\nos._exit(0)",
    "sys.exit": "import sys\ndef double(x):\n    sys.exit(0)",
    "exit hooks": """
        import atexit
        atexit.register(lambda: print("ok"))
        def double(x):
            return x
        """,
    "an array that equals everything": """
        class Equal(np.ndarray):
            __eq__ = __le__ = __ge__ = lambda self, other: np.bool_(True)
            __ne__ = __lt__ = __gt__ = lambda self, other: np.bool_(False)
            __array_ufunc__ = lambda self, *a, **k: np.bool_(True)
        def double(x):
            return x.view(Equal)
        """,
    "a number that equals everything": """
        class Equal(float):
            __eq__ = lambda self, other: True
        def double(x):
            return [Equal(1), Equal(1)]
        """,
    "NaN": "def double(x):\n    return np.full(len(x), np.nan)",
    "infinity": "def double(x):\n    return np.full(len(x), np.inf)",
    "None": "def double(x):\n    return None",
    "a pickle": """
        class Pickle:
            def __reduce__(self):
                return (print, ("executed by the grader",))
        def double(x):
            return Pickle()
        """,
    "an object array": "def double(x):\n    return np.array([print, open], dtype=object)",
    "printing": """
        def double(x):
            print("passed", 5, "of", 5)
            return x
        """,
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS.keys())
def test_a_cheat_gets_nothing(sandbox, code):
    found = marked(sandbox, code)
    assert found.share == 0 and found.status in ("failed", "stopped", "unanswered")


def test_a_grader_in_the_same_process_would_be_cheated(monkeypatch):
    """The first cheat is one: against a comparison that shares its NumPy it wins."""
    x, cell = np.ones(2), {"np": np}
    monkeypatch.setattr(np, "allclose", np.allclose)
    monkeypatch.setattr(np, "array_equal", np.array_equal)
    monkeypatch.setattr(np, "isclose", np.isclose)
    exec("np.allclose = np.array_equal = np.isclose = lambda *a, **k: True\ndef double(x):\n    return x", cell)
    assert np.allclose(cell["double"](x), 2 * x)


def _forging(body: bytes) -> str:
    return f"""
        import os, struct
        def double(x):
            message = {body!r}
            for descriptor in range(64):
                try:
                    os.write(descriptor, struct.pack("<I", len(message)) + message)
                except OSError:
                    pass
            os._exit(0)
        """


FORGED = {
    "the grader's own words": wire.encode(("returned", True, [])),
    "a mark": wire.encode(("returned", "passed", [np.ones(2)])),
    "full points": wire.encode({"share": 1.0, "status": "passed"}),
    "another result": wire.encode(("returned", np.ones(2), [np.ones(2)])),
    "an array as a word": wire.encode((np.ones(3), np.ones(3), np.ones(3))),
    "a candidate's answer": wire.encode(("call", (np.ones(2),))),
    "executed": wire.encode(("executed",)),
    "a pickle": pickle.dumps(("returned", np.ones(2), [])),
    "a length of 4 GiB": b"a" + b"\xff" * 9,
    "nothing": b"",
}


@pytest.mark.parametrize("body", FORGED.values(), ids=FORGED.keys())
def test_forged_output_gets_nothing(sandbox, body):
    found = marked(sandbox, _forging(body))
    assert found.share == 0 and found.status in ("failed", "stopped")


def test_the_forger_did_reach_the_grader(sandbox):
    """What the tests above send does arrive: a forged *right* result passes, as it would if it were returned."""
    code = """
        import os, struct
        def double(x):
            def array(x):
                return b"a" + bytes([%d, 1]) + struct.pack("<q", len(x)) + x.tobytes()
            message = b"t" + struct.pack("<I", 3) + b"s" + struct.pack("<I", 8) + b"returned" + array(2 * x)
            message += b"l" + struct.pack("<I", 1) + array(x)
            for descriptor in range(64):
                try:
                    os.write(descriptor, struct.pack("<I", len(message)) + message)
                except OSError:
                    pass
            os._exit(0)
        """
    assert marked(sandbox, code % wire.DTYPES.index("<f8")).status == "passed"


# Limits


EXECUTED = wire.encode(("executed",))
TO_ALL = (
    "while True:\n        for d in range(64):\n            try:\n                os.write(d, {})\n"
    "            except OSError:\n                pass"
)
ENDLESS = {
    "a loop": "while True:\n        pass",
    "a loop that ignores signals": "import signal\n    for s in range(1, 65):\n        try:\n"
    "            signal.signal(s, signal.SIG_IGN)\n        except (OSError, ValueError):\n            pass\n"
    "    while True:\n        pass",
    "output": "while True:\n        print('x' * 10**6, flush=True)",
    "output to every descriptor": TO_ALL.format("b'x' * 10**6"),
    "messages": TO_ALL.format(repr(len(EXECUTED).to_bytes(4, "little") + EXECUTED)),
    "a fork bomb": "while True:\n        try:\n            os.fork()\n        except OSError:\n            pass",
    "recursion": "return double(x)",
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_never_ends_is_stopped(best, body):
    before = time.monotonic()
    found = marked(best, f"import os\ndef double(x):\n    {body}")
    assert found.share == 0 and found.status in ("stopped", "failed")
    assert time.monotonic() - before < LIMITS.wall


def test_an_endless_loop_is_stopped_without_isolation_too():
    found = marked(Sandbox(LIMITS, isolated=False), "def double(x):\n    while True:\n        pass")
    assert found.lines[1] == "stopped: it took more than 1 s of processor time"


def test_sleeping_is_stopped_by_the_clock():
    limits = Limits(cpu=1, wall=6)
    for isolated in (True, False):
        found = marked(Sandbox.best(limits, [], isolated), "import time\ndef double(x):\n    time.sleep(60)")
        assert found.lines[1] == "stopped: it took more than 6 s"


def test_no_process_and_no_thread_can_be_started(sandbox):
    code = """
        import _thread, os
        def tried(action):
            try:
                action()
                return True
            except (OSError, RuntimeError):
                return False
        def f():
            return [
                tried(os.fork),
                tried(lambda: os.posix_spawn("/bin/true", ["true"], {})),
                tried(lambda: _thread.start_new_thread(print, ())),
            ]
        """
    if "start processes" in sandbox.holes:
        pytest.skip("this system doesn't limit processes")
    assert not any(answered(sandbox, code))


@pytest.mark.parametrize("code", ["np.ones(10**10 // 8)", "[np.empty(10**7) for _ in range(1000)]"])
def test_ten_gigabytes_are_refused(sandbox, code):
    if "take all memory" in sandbox.holes:
        pytest.skip("this system doesn't limit memory")
    found = marked(sandbox, f"def double(x):\n    return {code}")
    assert (found.share, found.status) == (0, "failed")
    assert "MemoryError" in found.lines[1]


def test_a_file_has_its_limit(best):
    code = """
        def f():
            try:
                with open("large", "wb") as file:
                    for _ in range(100):
                        file.write(bytes(1 << 20))
            except OSError:
                return "refused"
        """
    assert answered(best, code) == "refused"


@pytest.mark.parametrize(
    "other",
    [
        "import os\nos._exit(0)",
        "while True:\n    pass",
        "raise ValueError",
        "import os\nos.abort()",
        "not even Python",
        "x = '" + 5_000_000 * "x" + "'",
        "import os\nfor d in range(3, 64):\n    try:\n        os.close(d)\n    except OSError:\n        pass",
    ],
    ids=["exit", "loop", "exception", "crash", "no Python", "too large", "closed pipes"],
)
def test_a_broken_answer_costs_its_own_question_alone(best, other):
    assert marked(best, other).share == 0
    assert marked(best, RIGHT["toy_square"], "square", {"toy_double": other}).status == "passed"


def test_nothing_is_left_from_one_call_to_the_next(sandbox):
    code = """
        import os
        def f():
            seen = os.listdir(".")
            open("note", "w").write("remember me")
            return seen
        """
    assert answered(sandbox, code) == answered(sandbox, code) == []


# Isolation


def test_the_course_can_not_be_read(isolated):
    sandbox, course = isolated
    code = """
        import os
        def f(course):
            read = []
            for place, _, files in os.walk("/"):
                read += {"gradebook.db", "secret", "toy.ipynb", "passwd"} & set(files)
            return read, os.path.exists(course), os.path.exists("/proc/1")
        """
    assert answered(sandbox, code, str(course)) == ([], False, False)


@pytest.mark.parametrize("name", ["gradebook.db", "secret", "source/toy/toy.ipynb", "submitted/ann/toy/toy.ipynb"])
def test_a_file_of_the_course_can_not_be_opened(isolated, name):
    sandbox, course = isolated
    code = f"def double(x):\n    open({str(course / name)!r}).read()\n    return 2 * x"
    found = marked(sandbox, code)
    assert found.share == 0 and "FileNotFoundError" in found.lines[1]
    assert (course / name).read_text() == "the answer is 42"  # and it is there


def test_minislice_can_not_be_imported(isolated):
    sandbox, _ = isolated
    code = """
        import importlib, sys
        def f(places):
            sys.path[:0] = places
            found = []
            for name in ("minislice", "torch", "child", "marking"):
                try:
                    found.append(importlib.import_module(name).__name__)
                except ImportError:
                    pass
            return found
        """
    places = [str(Path(minislice.__file__).parents[1]), str(sandboxes.PACKAGES), str(Path(sandboxes.__file__).parent)]
    assert answered(sandbox, code, [*places, *sys.path]) == []


def test_without_isolation_minislice_still_takes_a_path(sandbox):
    assert marked(sandbox, "import minislice\ndef double(x):\n    return 2 * x").share == 0


def test_there_is_no_network(isolated):
    sandbox, _ = isolated
    code = """
        import socket
        def f():
            reached = []
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for address in ("127.0.0.1", "10.0.0.1", "1.1.1.1"):
                    try:
                        s = socket.socket(socket.AF_INET, kind)
                        s.settimeout(0.2)
                        s.connect((address, 53))
                        s.send(b"x")
                        reached.append(address)
                    except OSError:
                        pass
            return reached
        """
    assert answered(sandbox, code) == []


def test_libraries_can_not_be_written_to(isolated):
    sandbox, _ = isolated
    code = """
        import os
        def f():
            written = []
            for module in (np, os):
                for path in (module.__file__, os.path.dirname(module.__file__) + "/planted.py"):
                    try:
                        open(path, "a").close()
                        written.append(path)
                    except OSError:
                        pass
            return written
        """
    assert answered(sandbox, code) == []


def test_no_privilege_comes_back(isolated):
    sandbox, _ = isolated
    code = """
        import ctypes, os
        def f():
            c = ctypes.CDLL(None, use_errno=True)
            user, mount = 0x10000000, 0x20000
            return [
                os.getuid() == 0, c.unshare(user), c.unshare(mount), c.setuid(0),
                c.mount(b"tmpfs", b".", b"tmpfs", 0, None), c.chroot(b"."), os.getpid(),
            ]
        """
    assert answered(sandbox, code) == [False, -1, -1, -1, -1, -1, 1]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root becomes nobody, who may read less")
def test_the_probe_finds_what_is_open(tmp_path):
    found = Sandbox.best(LIMITS, [tmp_path], isolated=False)
    assert {"read your files", "use the network"} <= set(found.holes)


def test_the_probe_finds_the_network():
    assert "use the network" in Sandbox.best(LIMITS, [], isolated=False).holes


def test_where_namespaces_are_refused_it_goes_on_and_says_why(monkeypatch):
    call = Sandbox.call

    def refused(self, *arguments, **named):
        if self.isolated:
            raise OSError("unshare: Operation not permitted")
        return call(self, *arguments, **named)

    monkeypatch.setattr(Sandbox, "call", refused)
    found = Sandbox.best(LIMITS, [])
    assert not found.isolated and found.refused == "unshare: Operation not permitted" and found.holes
