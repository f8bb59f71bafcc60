"""The grader's marks: a cheat gets no points, and a bad answer costs its own question alone."""

import dataclasses
import os
import re
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from grading import sandbox as sandboxes
from grading import wire
from grading.marking import mark
from grading.sandbox import Limits, Sandbox
from grading.submission import Submission

import minislice
from minislice.teaching.assignments.a3 import A3
from minislice.teaching.assignments.exercise import Assignment, Case, MutationQuestion, Question
from minislice.teaching.assignments.forms import Array
from minislice.teaching.assignments.judging import Places

LIMITS = Limits(memory=1 << 30, cpu=1, wall=20)
SECRET = b"the secret of this course"
GIVEN = [("given", "import numpy as np")]
PLAIN = {"minutes": 1, "difficulty": 1, "text": "", "hints": ()}


def _question(name, expected):
    return Question(
        name=name,
        points=5,
        cases=lambda rng: [Case({"n": n}, {"x": rng.standard_normal(n)}) for n in (2, 3)],
        returns=lambda x: Array("y", x.shape),
        judge=lambda y, x: Places().add("y", expected(x), y).failure(),
        **PLAIN,
    )


class QuickCheck(MutationQuestion):
    reference_seeds, mutant_seeds = 3, 1  # less often than in a course


def twice(x, mark="the reference's own"):
    return 2 * x


def thrice(x, mark="the mutant's own"):
    return 3 * x


CHECK = QuickCheck(
    name="check",
    points=4,
    takes={"x": "n"},
    reference=twice,
    shown={"triples": thrice},
    hidden={"negative": lambda x: 2 * np.abs(x), "long": lambda x: 2 * x + (len(x) > 3)},
    **PLAIN,
)
QUESTIONS = _question("double", lambda x: 2 * x), _question("square", lambda x: x**2), CHECK
TOY = Assignment("toy", "Toy", goal="", before="", difficulty=1, questions=QUESTIONS)
RIGHT = {"toy_double": "def double(x):\n    return 2 * x", "toy_square": "def square(x):\n    return x * x"}
WRONG = "\ndef double(x):\n    return x"


@pytest.fixture(scope="module")
def best():
    """With all the isolation there is here."""
    return Sandbox.best(LIMITS, [Path(__file__).resolve()])


@pytest.fixture(scope="module")
def unprotected():
    """With no isolation but limits: a cheat must get nothing here, for whoever judges doesn't rely on isolation."""
    return Sandbox.best(LIMITS, [Path(__file__).resolve()], isolated=False)


@pytest.fixture(params=["best", "unprotected"])
def sandbox(request):
    return request.getfixturevalue(request.param)


def marked(sandbox, code, name="double", others=RIGHT, reference=RIGHT):
    """The mark of one answer in a submission whose other answers are right."""
    answers = {**others, f"toy_{name}": textwrap.dedent(code)}
    return mark(TOY, TOY.question(name), Submission(answers), GIVEN, sandbox, SECRET, reference)


def answered(sandbox, code, *arguments):
    """What the function f of some code returned in the sandbox."""
    answer = sandbox.call([*GIVEN, ("cell", textwrap.dedent(code))], "f", arguments)
    assert answer[0] == "returned", answer
    return answer[1]


# Right and wrong answers


def test_right_answers_pass(sandbox):
    assert marked(sandbox, RIGHT["toy_double"]).lines == ("TOY.double  ok, 2 cases",)
    assert marked(sandbox, "def square(x):\n    return double(x) * x / 2", "square").share == 1
    assert marked(sandbox, "%matplotlib inline\n!pip list\ndef double(x):\n    return x + x").status == "passed"


def test_a_slip_in_one_function_costs_its_own_points_alone(best):
    slip = {"toy_double": "def half(x):\n    return x / 2\n\ndef double(x):\n    return 3 * x"}
    uses = "def square(x):\n    return double(x) * half(x)"
    assert marked(best, slip["toy_double"]).share == 0
    assert marked(best, uses, "square", slip).share == 1
    assert marked(best, uses, "square", slip, reference=slip).share == 0
    own = {"toy_double": "def double(x, twice):\n    return x * 2 if twice else x"}
    assert marked(best, "def square(x):\n    return double(x, True) * x / 2", "square", own).share == 1


@pytest.mark.parametrize(
    "other", ["import os\nos._exit(0)", f"x = '{5_000_000 * 'x'}'", "import os\nos.closerange(3, 64)"]
)
def test_a_broken_answer_costs_its_own_question_alone(best, other):
    assert marked(best, other).share == 0
    assert marked(best, RIGHT["toy_square"], "square", {"toy_double": other}).status == "passed"


def test_parts_that_are_right_have_their_points(best):
    """A3, where the adapters are forgotten: 12 of 15 points."""
    from assignment import function_source

    answer = re.sub(r"return rotated, .*", "return rotated, None", function_source("a3", "rotate"))
    found = mark(A3, A3.question("rotate"), Submission({"a3_rotate": answer}), GIVEN, best, SECRET, {})
    assert (found.share, found.status) == (12 / 15, "partial")
    assert found.lines[1] == "S: expected float64 [2, 3, 3], got None"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("def double(x):\n    return 2 * x + (np.arange(len(x)) == 1)", "failed", "(n=2); y: first difference at [1]"),
        ("def double(x):\n    raise NotImplementedError()", "unanswered", "not written yet"),
        ("double = 3", "unanswered", "defines no function double"),
        ("def double(x)\n    return 2 * x", "failed", "line 1, `def double(x)`: SyntaxError"),
        ("def double(x):\n    return 2 * x[:1]", "failed", "expected float64 [2], got float64 [1]"),
        ("def double(x):\n    x *= 2\n    return x", "failed", "changes its argument"),
        ("def double(x):\n    return np.zeros(10**7)", "failed", "must be made of None, bool"),
        ("def double(x):\n    raise ValueError(str(x))", "failed", "ValueError"),
        ("def double(x):\r    return y  # \x0b<b>", "failed", "line 2, `return y  #  <b>`: NameError"),
        ("def double(x):\n    raise type(f'E{x[0]}', (Exception,), {})", "failed", "an exception"),
    ],
)
def test_a_wrong_answer_is_told_where_but_no_number_of_the_case(best, code, status, words):
    found = marked(best, code)
    told = "; ".join(found.lines)
    assert (found.share, found.status) == (0, status) and words in told
    assert not re.search(r"\d\.\d", told)


def test_hidden_cases_depend_on_the_secret_and_the_question_and_so_does_the_order_of_candidates():
    seen, candidates = [], {}

    class Seeing(Sandbox):
        def call(self, cells, function, arguments=(), candidate=None, seed=None):
            seen.append(seed if candidate else tuple(float(x) for x in arguments[0]))
            if candidate:
                candidates.setdefault(secret, []).append(float(candidate(np.ones(4))[0]))
            return ("returned", None, [])

    secrets = [bytes([number]) for number in range(4)]
    for name, secret in (
        ("double", SECRET),
        ("square", SECRET),
        ("double", b"another"),
        *(("check", s) for s in secrets),
    ):
        mark(TOY, TOY.question(name), Submission({**RIGHT, "toy_check": ""}), GIVEN, Seeing(LIMITS), secret, RIGHT)
    assert len(set(seen[:5])) == 3 and len(set(seen[5:])) == 4 * 6  # `square` is tried three times on its first case
    assert len(set(map(tuple, candidates.values()))) > 1


# Checks written by students


GOOD_CHECK = """
def check(candidate, rng):
    x = rng.standard_normal(5)
    assert np.allclose(candidate(x), 2 * x)
"""
REJECTED = "it raises on the right function"
WHO_RAISED = """
def check(candidate, rng):
    try:
        candidate({})
    except (TypeError, ValueError) as error:
        assert not any(word in str(error) for word in ("thrice", "lambda"))
"""
LOOKING = """
def check(candidate, rng):
    import gc
    functions = [o for o in gc.get_objects() if type(o).__name__ == "function"]
    assert candidate in functions
    assert not any("'s own" in str(f.__defaults__) for f in functions)
    assert candidate(np.ones(2))[0] == 2
"""


@pytest.mark.parametrize(
    ("code", "share", "words"),
    [
        (GOOD_CHECK, 1, "kills 1 of 1 shown and 2 of 2 hidden"),
        (GOOD_CHECK.replace("(5)", "(2) - 9"), 2 / 3, "kills 1 of 1 shown and 1 of 2 hidden"),
        (LOOKING, 1 / 3, "0 of 2 hidden"),
        ("def check(candidate, rng):\n    pass", 0, "kills 0 of 1 shown and 0 of 2 hidden"),
        ("def check(candidate, rng):\n    assert rng.random() < 0.5", 0, REJECTED),
        ("import os\ndef check(candidate, rng):\n    os._exit(1)", 0, "the process ended"),
        ("def check(candidate, rng):\n    candidate(open)", 0, REJECTED),
        ("def check(candidate, rng):\n    candidate(np.ones(10**5))", 0, REJECTED),
        *((WHO_RAISED.format(x), 0, "0 of 1 shown") for x in ("", "np.ones(2), 1, 2", "'x'")),
    ],
)
def test_a_check_gets_points_for_what_it_rejects(best, code, share, words):
    found = marked(best, code, "check")
    assert found.share == pytest.approx(share) and words in "; ".join(found.lines)


# Cheats that need nothing but Python


PATCHED = "np.allclose = np.array_equal = np.isclose = lambda *a, **k: True\n"
BUILTINS = "\nbuiltins.all = builtins.any = builtins.isinstance = builtins.abs = lambda *a: True\nbuiltins.type = float"
EQUAL = """
class Equal({}):
    __eq__ = __le__ = __ge__ = lambda self, other: True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __array_ufunc__ = lambda self, *a, **k: np.bool_(True)
"""
TO_ALL = """
        for descriptor in range(64):
            try:
                os.write(descriptor, {})
            except OSError:
                pass"""
FORGED = {  # written to every descriptor in place of a result
    "the grader's own words": wire.encode(("returned", True, [])),
    "full points": wire.encode({"share": 1.0, "status": "passed"}),
    "another result": wire.encode(("returned", np.ones(2), [np.ones(2)])),
    "an array as a word": wire.encode((np.ones(3), np.ones(3), np.ones(3))),
    "a candidate's answer": wire.encode(("call", (np.ones(2),))),
    "ready": wire.encode(True),
    "a number as the line": b'{"tuple": ["raised", "ValueError", 31415926535]}',
    "no message": b"\x80\x04\x95\x1a",
}
CHEATS = {
    "patched libraries": PATCHED + "np.abs = np.asarray = lambda *a, **k: np.zeros(1)" + WRONG,
    "patched builtins": f"import builtins{BUILTINS}{WRONG}",
    "os._exit(0)": "import os\ndef double(x):\n    os._exit(0)",
    "exit hooks": "import atexit\natexit.register(lambda: print('ok'))" + WRONG,
    "an array that equals everything": EQUAL.format("np.ndarray") + "def double(x):\n    return x.view(Equal)",
    "a number that equals everything": EQUAL.format("float") + "def double(x):\n    return [Equal(1), Equal(1)]",
    "NaN": "def double(x):\n    return np.full(len(x), np.nan)",
    "a pickle": "class P:\n    def __reduce__(self):\n        return print, ('!',)\ndef double(x):\n    return P()",
    "printing": "def double(x):\n    print('passed', 5, 'of', 5)\n    return x",
    "an import of minislice": "import minislice\ndef double(x):\n    return 2 * x",
    **{
        f"forged: {name}": f"import os\ndef double(x):{TO_ALL.format(body + bytes([10]))}\n        os._exit(0)"
        for name, body in FORGED.items()
    },
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS.keys())
def test_a_cheat_gets_nothing(unprotected, code):
    found = marked(unprotected, code)
    assert found.share == 0 and found.status in ("failed", "stopped") and "31415" not in str(found)


def test_the_cheats_are_some(unprotected, monkeypatch):
    """A comparison that shares its NumPy is cheated; and what is forged arrives: a *right* result passes."""
    cell = {"np": np}
    for name in ("allclose", "array_equal", "isclose"):
        monkeypatch.setattr(np, name, getattr(np, name))
    exec(PATCHED + WRONG, cell)
    assert np.allclose(cell["double"](np.ones(2)), 2 * np.ones(2))
    code = """
import base64, os
def array(x):
    return '{"array": ["<f8", [%d], "%s"]}' % (len(x), base64.b64encode(x.tobytes()).decode())
def double(x):
        message = '{"tuple": ["returned", %s, [%s]]}\\n' % (array(2 * x), array(x))"""
    assert marked(unprotected, code + TO_ALL.format("message.encode()") + "\n        os._exit(0)").status == "passed"


# Limits


ENDLESS = {
    "a loop that ignores signals": "import signal\n    for s in range(1, 65):\n        try:\n"
    "            signal.signal(s, signal.SIG_IGN)\n        except (OSError, ValueError):\n            pass\n"
    "    while True:\n        pass",
    "output to every descriptor": "while True:" + TO_ALL.format("b'x' * 10**6"),
    "messages": "while True:" + TO_ALL.format(wire.encode(("call", ())) + b"\n"),
    "a fork bomb": "while True:\n        try:\n            os.fork()\n        except OSError:\n            pass",
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_never_ends_is_stopped(best, body):
    before = time.monotonic()
    found = marked(best, f"import os\ndef double(x):\n    {body}")
    assert found.share == 0 and found.status in ("stopped", "failed")
    assert time.monotonic() - before < LIMITS.wall


def test_a_loop_and_a_sleep_are_stopped(sandbox):
    found = marked(sandbox, "def double(x):\n    while True:\n        pass")
    assert found.lines[1] == "stopped: it took more than 1 s of processor time"
    impatient = dataclasses.replace(sandbox, limits=Limits(cpu=1, wall=2))
    found = marked(impatient, "import time\ndef double(x):\n    time.sleep(60)")
    assert found.lines[1] == "stopped: it took more than 2 s"


REACH = """
import _thread, ctypes, importlib, os, socket, sys
c = ctypes.CDLL(None, use_errno=True)

def done(status):
    if status:
        raise OSError

def connect(kind, address):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(0.2)
    s.connect((address, 53))
    s.send(b"x")

def works(code, course):
    try:
        eval(code, globals(), {"course": course})
    except (OSError, RuntimeError, ImportError):
        return False
    return True

def f(tries, course="", places=()):
    sys.path[:0] = places
    return [each for each in tries if works(each, course)]
"""
COSTLY = [
    *("os.fork()", "os.posix_spawn('/bin/true', ['true'], {})", "_thread.start_new_thread(print, ())"),
    "open('large', 'wb').write(bytes(100 << 20))",
]


def test_processes_memory_and_files_have_limits(sandbox):
    if {"start processes", "take all memory"} & set(sandbox.holes):
        pytest.skip("this system has no such limits")
    assert answered(sandbox, REACH, COSTLY) == []
    for code in ("np.ones(10**10 // 8)", "[np.empty(10**7) for _ in range(1000)]"):
        found = marked(sandbox, f"def double(x):\n    return {code}")
        assert (found.share, found.status) == (0, "failed") and "MemoryError" in found.lines[1]


def test_nothing_is_left_from_one_call_to_the_next(sandbox):
    code = "import os\ndef f():\n    seen = os.listdir('.')\n    open('note', 'w').write('remember')\n    return seen"
    assert answered(sandbox, code) == answered(sandbox, code) == []


# Isolation


FILES = ("gradebook.db", "secret", "source/toy.ipynb", "submitted/ann/toy.ipynb")
OUTSIDE = (
    *(f"open(course + '/{name}')" for name in FILES),
    *("os.listdir(course)", "open('/etc/passwd')", "os.stat('/proc/1')", "os.listdir('/proc')"),
    *(f"importlib.import_module('{name}')" for name in ("minislice", "torch", "child", "marking")),
    *(f"connect(socket.SOCK_{kind}, '{to}')" for kind in ("STREAM", "DGRAM") for to in ("127.0.0.1", "1.1.1.1")),
    *(f"open({path}, 'a')" for path in ("np.__file__", "os.__file__", "os.path.dirname(np.__file__) + '/planted.py'")),
    *("done(c.unshare(0x10000000))", "done(c.unshare(0x20000))", "done(c.setuid(0))", "done(c.chroot(b'.'))"),
    *("done(os.getpid() != 1)", "done(c.mount(b'tmpfs', b'.', b'tmpfs', 0, None))", "done(os.getuid())"),
)
ITSELF = "done(os.getpid() != 1)"  # the only process there


def test_an_isolated_process_reaches_nothing_outside(best, tmp_path):
    if not best.isolated:
        pytest.skip(f"this system has no isolation to try: {best.refused}")
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("the answer is 42")
    for folder in (*tmp_path.parents[:3], tmp_path, *tmp_path.rglob("*")):  # nothing else is in the way
        folder.chmod(0o755)
    places = [str(Path(minislice.__file__).parents[1]), str(sandboxes.PACKAGES), str(Path(sandboxes.__file__).parent)]
    arguments = list(OUTSIDE), str(tmp_path), [*places, *sys.path]
    assert answered(best, REACH, *arguments) == [ITSELF]
    assert {*OUTSIDE[:7]} <= {*answered(Sandbox(LIMITS, isolated=False), REACH, *arguments)}
    opens = f"def double(x):\n    open({str(tmp_path / 'secret')!r}).read()\n    return 2 * x"
    assert "FileNotFoundError" in marked(best, opens).lines[1]


def test_the_probe_finds_what_is_open_and_says_why(monkeypatch, tmp_path):
    call = Sandbox.call

    def refused(self, *arguments, **named):
        if self.isolated:
            raise OSError("unshare: Operation not permitted")
        return call(self, *arguments, **named)

    monkeypatch.setattr(Sandbox, "call", refused)
    found = Sandbox.best(LIMITS, [tmp_path])
    assert (
        not found.isolated and found.refused == "unshare: Operation not permitted" and "use the network" in found.holes
    )
    if hasattr(os, "geteuid") and os.geteuid():  # root becomes nobody, who may read less
        assert "read your files" in found.holes
