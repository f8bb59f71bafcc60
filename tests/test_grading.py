"""The grader's marks: a cheat gets no points, and a bad answer costs its own question alone."""

import re
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grade import mark
from grading import sandbox as sandboxes
from grading import wire
from grading.sandbox import Sandbox

import minislice
from minislice.teaching.assignments.exercise import Assignment, Case, MutationQuestion, Question
from minislice.teaching.assignments.forms import Array
from minislice.teaching.assignments.judging import Place, first_wrong

LIMITED = Sandbox(memory=1 << 30, cpu=1, wall=20)
GIVEN = [("given", "import numpy as np")]
PLAIN = {"text": "", "minutes": 1, "hints": ()}


def _question(name, expected):
    return Question(
        name=name,
        points=5,
        cases=lambda rng: [Case({"n": n}, {"x": rng.standard_normal(n)}) for n in (2, 3)],
        returns=lambda x: Array("y", x.shape),
        judge=lambda y, x: first_wrong([Place("y", expected(x)).of(y)]),
        **PLAIN,
    )


class QuickCheck(MutationQuestion):
    reference_seeds, mutant_seeds = 2, 1  # less often than in a course


def twice(x, mark="the reference's own"):
    return 2 * x


def thrice(x, mark="the mutant's own"):
    return 3 * x


CHECK = QuickCheck(
    name="check",
    points=4,
    reference=twice,
    shown=(thrice,),
    hidden={"negative": lambda x: 2 * np.abs(x), "long": lambda x: 2 * x + (len(x) > 3)},
    **PLAIN,
)
QUESTIONS = {
    "double": _question("double", lambda x: 2 * x),
    "square": _question("square", lambda x: x**2),
    "check": CHECK,
}
TOY, CHECKS = (  # a check that fails after the student's answers would be tried again after right ones
    Assignment("toy", "Toy", "★☆☆", "", "", "", questions) for questions in ([*QUESTIONS.values()], [CHECK])
)
RIGHT = {"toy_double": "def double(x):\n    return 2 * x", "toy_square": "def square(x):\n    return x * x"}
WRONG = "\ndef double(x):\n    return x"


@pytest.fixture(scope="module")
def best():
    """With all the isolation there is here."""
    return LIMITED.best()


UNPROTECTED = replace(LIMITED, isolated=False)  # but for limits: whoever judges doesn't rely on isolation


def marked(sandbox, code, name="double", others=RIGHT, reference=RIGHT):
    """The mark of one answer in a submission whose other answers are right."""
    answers = {**others, f"toy_{name}": textwrap.dedent(code)}
    toy = CHECKS if name == "check" else TOY
    return mark(toy, QUESTIONS[name], answers, GIVEN, reference, sandbox, b"the secret of this course")


def answered(sandbox, code, *arguments):
    """What the function f of some code returned in the sandbox."""
    result, _ = sandbox.call([*GIVEN, ("cell", textwrap.dedent(code))], "f", dict(zip("abc", arguments, strict=False)))
    return result


def test_a_slip_in_one_function_costs_its_own_points_alone(best):
    assert marked(best, "%matplotlib inline\ndef double(x):\n    return x + x").lines() == ["ok, 2 cases"]
    slip = {"toy_double": "def half(x):\n    return x / 2\n\ndef double(x):\n    return 3 * x"}
    uses = "def square(x):\n    return double(x) * half(x)"
    assert marked(best, uses, "square", slip).share == 1
    assert marked(best, uses, "square", slip, reference=slip).share == 0
    for broken in (f"x = '{5_000_000 * 'x'}'", "import os\nos.closerange(3, 64)"):
        assert marked(best, broken).share == 0
        assert marked(best, RIGHT["toy_square"], "square", {"toy_double": broken}).status == "passed"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("def double(x):\n    return 2 * x + (np.arange(len(x)) == 1)", "failed", "(n=2); y: first difference at [1]"),
        ("double = 3", "unanswered", "defines no function double"),
        ("def double(x)\n    return 2 * x", "failed", "line 1, `def double(x)`: SyntaxError"),
        ("def double(x):\n    x *= 2\n    return x", "failed", "changes its argument"),
        ("def double(x):\n    return np.zeros(10**7)", "failed", "must be made of None, bool"),
        ("def double(x):\r    raise OSError(str(x))  # \x0b<b>", "failed", "`raise OSError(str(x))  #  <b>`: OSError"),
        ("import torch\ndef double(x):\n    return 2 * x", "failed", "Only NumPy and Python's standard library"),
        ("def double(x):\n    return twice(x)", "failed", "NameError; Only the cells of this answer and"),
        ("def double(x):\n    raise type(f'E{x[0]}', (Exception,), {})", "failed", "an exception"),
    ],
)
def test_a_wrong_answer_is_told_where_but_no_number_of_the_case(best, code, status, words):
    found = marked(best, code)
    told = "; ".join(found.lines(values=False))
    assert (found.share, found.status) == (0, status) and words in told
    assert not re.search(r"\d\.\d", told)


def test_hidden_cases_and_the_order_of_candidates_depend_on_the_secret_and_the_question():
    class Seeing(Sandbox):
        def call(self, cells, function, arguments, candidate=None, seed=None):
            seen.append(candidate(np.ones(4)) if candidate else arguments["x"])
            return None, arguments

    tried = set()
    for name, secret in (("double", b"a"), ("square", b"a"), ("double", b"b"), ("check", b"a"), ("check", b"b")):
        seen = []
        mark(TOY, QUESTIONS[name], {**RIGHT, "toy_check": ""}, GIVEN, RIGHT, Seeing(), secret)
        tried.add(str(seen))
    assert len(tried) == 5


GOOD_CHECK = """
def check(candidate, rng):
    x = rng.standard_normal(5)
    assert np.allclose(candidate(x), 2 * x)
"""
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
        (LOOKING, 1 / 3, "0 of 2 hidden"),
        (WHO_RAISED, 0, "0 of 1 shown"),
        ("import os\ndef check(candidate, rng):\n    os._exit(1)", 0, "the process ended"),
        ("def check(candidate, rng):\n    candidate(open)", 0, "it raises on the right function"),
        ("def check(candidate, rng):\n    candidate(np.ones(10**5))", 0, "it raises on the right function"),
    ],
    ids=["good", "looking", "who raised", "exit", "no plain value", "too large"],
)
def test_a_check_gets_points_for_what_it_rejects(best, code, share, words):
    found = marked(best, code, "check")
    assert found.share == pytest.approx(share) and words in "; ".join(found.lines())


# Cheats that need nothing but Python


PATCHED = "import builtins\nnp.allclose = np.array_equal = np.isclose = lambda *a, **k: True"
BUILTINS = "builtins.all = builtins.any = builtins.isinstance = builtins.abs = lambda *a: True\nbuiltins.type = float"
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
    "the grader's own words": wire.encode(("returned", True, {"x": np.ones(2)})),
    "no arguments": wire.encode(("returned", np.ones(2), {})),
    "an array as a word": wire.encode((np.ones(3), np.ones(3), np.ones(3))),
    "a candidate's answer": wire.encode(("call", (np.ones(2),))),
    "a number as the line": b'["raised", "ValueError", 31415926535]',
    "no message": b"\x80\x04\x95\x1a",
}
CHEATS = {
    "patched": f"{PATCHED}\nnp.abs = np.asarray = lambda *a, **k: np.zeros(1)\n{BUILTINS}{WRONG}",
    "os._exit(0)": "import os\ndef double(x):\n    os._exit(0)",
    "an array that equals everything": EQUAL.format("np.ndarray") + "def double(x):\n    return x.view(Equal)",
    "a number that equals everything": EQUAL.format("float") + "def double(x):\n    return [Equal(1), Equal(1)]",
    "NaN": "def double(x):\n    return np.full(len(x), np.nan)",
    "a pickle": "class P:\n    def __reduce__(self):\n        return print, ('!',)\ndef double(x):\n    return P()",
    "an import of minislice": "import minislice\ndef double(x):\n    return 2 * x",
    **{
        f"forged: {name}": f"import os\ndef double(x):{TO_ALL.format(body + bytes([10]))}\n        os._exit(0)"
        for name, body in FORGED.items()
    },
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS.keys())
def test_a_cheat_gets_nothing(code):
    found = marked(UNPROTECTED, code)
    assert found.share == 0 and found.status in ("failed", "stopped") and "31415" not in str(found)


def test_what_is_forged_arrives_so_that_a_right_result_passes():
    code = """
import base64, os
def array(x):
    return '{"ndarray": ["<f8", [%d], "%s"]}' % (len(x), base64.b64encode(x.tobytes()).decode())
def double(x):
        message = '["returned", %s, {"x": %s}]\\n' % (array(2 * x), array(x))"""
    assert marked(UNPROTECTED, code + TO_ALL.format("message.encode()") + "\n        os._exit(0)").status == "passed"


DEAF_LOOP = """def double(x):
    import signal
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass"""
ENDLESS = {
    "output to every descriptor": "while True:" + TO_ALL.format("b'x' * 10**6"),
    "messages": "while True:" + TO_ALL.format(wire.encode(("call", ())) + b"\n"),
    "a fork bomb": "while True:\n        try:\n            os.fork()\n        except OSError:\n            pass",
}


@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_never_ends_is_stopped(best, body):
    before = time.monotonic()
    found = marked(best, f"import os\ndef double(x):\n    {body}")
    assert found.share == 0 and found.status in ("stopped", "failed")
    assert time.monotonic() - before < LIMITED.wall


def test_processor_time_and_time_by_the_clock_are_limited(best):
    for sandbox, code, limit in (
        (UNPROTECTED, DEAF_LOOP, "1 s of processor time"),
        (replace(best, wall=4), "import time\ndef double(x):\n    time.sleep(60)", "4 s"),
    ):
        assert marked(sandbox, code).lines()[1] == f"stopped: it took more than {limit}"


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
LEAVING = "import os\ndef f():\n    seen = os.listdir('.')\n    open('note', 'w').write('remember')\n    return seen"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems don't limit memory")
def test_processes_memory_and_files_have_limits_and_nothing_is_left_from_a_call(best):
    for sandbox in (best, UNPROTECTED):
        assert answered(sandbox, REACH, COSTLY) == []
        found = marked(sandbox, "def double(x):\n    return [np.empty(10**7) for _ in range(1000)]")
        assert (found.share, found.status) == (0, "failed") and "MemoryError" in found.lines()[1]
        assert answered(sandbox, LEAVING) == answered(sandbox, LEAVING) == []


FILES = ("gradebook.db", "secret", "source/toy.ipynb", "submitted/ann/toy.ipynb")
OUTSIDE = (
    *(f"open(course + '/{name}')" for name in FILES),
    *("os.listdir(course)", "open('/etc/passwd')", "os.stat('/proc/1')", "os.listdir('/proc')"),
    *(f"importlib.import_module('{name}')" for name in ("minislice", "torch", "child", "sandbox")),
    *(f"connect(socket.SOCK_{kind}, '{to}')" for kind in ("STREAM", "DGRAM") for to in ("127.0.0.1", "1.1.1.1")),
    *(f"open({path}, 'a')" for path in ("np.__file__", "os.__file__", "os.path.dirname(np.__file__) + '/planted.py'")),
    *("done(c.unshare(0x10000000))", "done(c.unshare(0x20000))", "done(c.setuid(0))", "done(c.chroot(b'.'))"),
    *("done(os.getpid() != 1)", "done(c.mount(b'tmpfs', b'.', b'tmpfs', 0, None))", "done(os.getuid())"),
)


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
    assert answered(best, REACH, *arguments) == ["done(os.getpid() != 1)"], "the only process there"
    assert {*OUTSIDE[:7]} <= {*answered(Sandbox(isolated=False), REACH, *arguments)}
    opens = f"def double(x):\n    open({str(tmp_path / 'secret')!r}).read()\n    return 2 * x"
    assert "FileNotFoundError" in marked(best, opens).lines()[1]
