"""What a question is, and how an answer is judged: the contract between the assignments and whoever runs them.

Two run the student's function: `feedback.check` in the student's notebook, and the grader in a process of its own. Both

1. take the cases of a question, smallest first, and call the function with `case.arguments`, by position, in order
2. give what came back, and the arguments as they were after the call, to `examine`
3. show the first `Failure`, the grader without its `values`: those would give the hidden cases away

A case's arguments, and what a function returns, are plain values: None, bool, int, float, str, NumPy arrays of float64,
int64 or bool, and tuples, lists and dictionaries of such. They can cross a pipe as dtype, shape and bytes.

An answer is judged by the properties it must have, and against the full-width toy networks of `toy`, never against
another version of the function that is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

LARGEST = 2**62  # a number that a function may return
TOLERANCE = 1e-10  # of a value, relative to the largest in its array, or absolute below 1


@dataclass(frozen=True)
class Array:
    """A float64 array that a function must return; a size given by a letter may be any."""

    name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Number:
    """One number that a function must return: `kind` is int or float."""

    name: str
    kind: type


# What a function must return: an Array, a Number, None (nothing else will do), or a tuple, list or dict of those.
Form = Any


@dataclass(frozen=True)
class Failure:
    """Why an answer is wrong.

    Args:
        kind: "missing", "exception", "changed", "type", "shape", "finite" or "values", in the order they are looked at.
        where: the place, as the student calls it: "b_out[1]".
        what: what is wrong there, without a number of the case.
        values: the numbers, for the eyes of whoever may know the case.
        fine: names of results that are right.
        mistake: what was probably done, where it is recognised.
        hint: a question that leads on.
    """

    kind: str
    where: str
    what: str
    values: str = ""
    fine: tuple[str, ...] = ()
    mistake: str = ""
    hint: str = ""

    def lines(self, values: bool = True) -> list[str]:
        """The failure in words, one sentence a line, with or without the numbers of the case."""
        place = f"{self.where}: {self.what}" if self.where else self.what
        last = [", ".join(f"{name} ok" for name in self.fine) + "." if self.fine else ""]
        last += [f"Hint: {self.hint}" if self.hint else ""]
        lines = [place, self.values if values else "", self.mistake, "  ".join(part for part in last if part)]
        return [line for line in lines if line]


@dataclass(frozen=True)
class Case:
    """One call of the student's function: sizes to name it by, and arguments in the order of the signature."""

    sizes: Mapping[str, int]
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items())


@dataclass(frozen=True)
class Question:
    """A function to write.

    Args:
        name: of the function; `solutions/` has a right one under this name.
        points: for all cases passed; there are none for fewer.
        difficulty: stars, 1 to 3.
        text: what to do and the equation, Markdown.
        hints: in layers, each says more than the one before.
        cases: from a random generator, the cases, smallest first.
        returns: from the arguments, the form of the result.
        judge: from the arguments and a result of that form with finite numbers, a Failure or None.
    """

    name: str
    points: int
    minutes: int
    difficulty: int
    text: str
    hints: Sequence[str]
    cases: Callable[[np.random.Generator], Sequence[Case]]
    returns: Callable[[Mapping[str, Any]], Form]
    judge: Callable[[Mapping[str, Any], Any], Failure | None]


@dataclass(frozen=True)
class MutationQuestion:
    """A check to write: `check(candidate, rng)` raises an exception if the candidate is wrong.

    `candidate` is the reference or a mutant: a function of plain values, with positional arguments, that returns plain
    values. Whoever runs the check may keep the candidate in another process than the check, and send values across.

    Args:
        shown: mutants by name that the student sees; `hidden`, those they don't.
    """

    name: str
    points: int
    minutes: int
    difficulty: int
    text: str
    hints: Sequence[str]
    reference: Callable[..., Any]
    shown: Mapping[str, Callable[..., Any]]
    hidden: Mapping[str, Callable[..., Any]]

    reference_seeds = 20  # the reference must be accepted with every one of so many generators
    mutant_seeds = 3  # a mutant is killed if it is rejected with every one of so many

    def try_out(self, rejects: "Callable[[Callable[..., Any], int], Failure | None]") -> "Kills":
        """Run a check on all candidates.

        Args:
            rejects: runs the student's check on a candidate with the generator of a trial's number; returns None if the
                check accepted it, and how it raised (`raised`) if not.
        """
        for trial in range(self.reference_seeds):
            if wrongly := rejects(self.reference, trial):
                return Kills(wrongly, (), (*self.shown, *self.hidden))
        dead = {
            name: all(rejects(mutant, trial) for trial in range(self.mutant_seeds))
            for name, mutant in {**self.shown, **self.hidden}.items()
        }
        return Kills(None, tuple(n for n in dead if dead[n]), tuple(n for n in dead if not dead[n]))


@dataclass(frozen=True)
class Kills:
    """What a check did: how it rejected the right function, if it did, and which mutants it killed and let live."""

    rejected: Failure | None
    killed: tuple[str, ...]
    survived: tuple[str, ...]

    @property
    def share(self) -> float:
        """Mutants killed of all, 0 if the right function was rejected: the share of the points."""
        return len(self.killed) / (len(self.killed) + len(self.survived))


@dataclass(frozen=True)
class WrittenQuestion:
    """A question answered in words and graded by hand; `solutions/` has an answer under this name."""

    name: str
    points: int
    minutes: int
    difficulty: int
    text: str


@dataclass(frozen=True)
class Assignment:
    """One notebook.

    Args:
        name: "a1" .. "a7", "m1" .. "m3".
        goal: what the student can do afterwards.
        before: what is needed before.
        notation: what all questions share, Markdown.
    """

    name: str
    title: str
    goal: str
    before: str
    difficulty: int
    questions: Sequence[Question | MutationQuestion]
    written: Sequence[WrittenQuestion] = ()
    notation: str = ""

    @property
    def minutes(self) -> int:
        return sum(question.minutes for question in (*self.questions, *self.written))

    @property
    def points(self) -> int:
        return sum(question.points for question in (*self.questions, *self.written))

    @property
    def tool(self) -> str:
        """What the function is called that tries an answer: `check`, unless that is what is to be written."""
        return "score" if any(isinstance(question, MutationQuestion) for question in self.questions) else "check"

    def question(self, name: str) -> Question | MutationQuestion:
        """The question whose function has this name.

        Raises:
            ValueError: there is none.
        """
        for question in self.questions:
            if question.name == name:
                return question
        raise ValueError(f"{self.name} has no function {name}; it asks for {', '.join(q.name for q in self.questions)}")

    def answer_id(self, question: Question | MutationQuestion | WrittenQuestion) -> str:
        """The grade_id of the cell that the student fills in."""
        return f"{self.name}_{question.name}"

    def test_id(self, question: Question | MutationQuestion) -> str:
        """The grade_id of the cell below it, which has the points."""
        return f"{self.name}_{question.name}_test"


def raised(name: str, message: str, line: int | None = None, code: str = "") -> Failure:
    """The failure of a function that raised the exception `name`, in its line `line` with the text `code`."""
    if name == "NotImplementedError":
        return Failure("missing", "", "not written yet")
    where = "" if line is None else f"line {line}" + (f", `{code.strip()}`" if code else "")
    return Failure("exception", where, name, message)


def examine(question: Question, arguments: Mapping[str, Any], result: Any, after: Mapping[str, Any]) -> Failure | None:
    """What is wrong with a result, or None: arguments changed, type, shape, finite, values, in this order.

    Args:
        arguments: as the function got them.
        after: as they were when it returned.
    """
    for name, value in arguments.items():
        if not same(value, after[name]):
            return Failure("changed", name, "the function changes its argument: make a copy first")
    form = question.returns(arguments)
    try:
        result = conform(form, result, "the result")
        with np.errstate(all="ignore"):
            return question.judge(arguments, result)
    except Misfit as misfit:
        return misfit.failure
    except np.linalg.LinAlgError:
        return Failure("values", "", "the numbers are so large that they can't be examined")


class Misfit(Exception):
    """A result of the wrong form; carries the failure."""

    def __init__(self, failure: Failure):
        self.failure = failure


def conform(form: Form, result: Any, name: str) -> Any:
    """The result in its form: tuples for tuples and lists for lists, numbers as Python's.

    Raises:
        Misfit: it has another type or shape, or a NaN or an infinity.
    """
    if isinstance(form, Array):
        return _array(form, result)
    if isinstance(form, Number):
        return _number(form, result)
    if form is None:
        if result is not None:
            raise Misfit(Failure("type", name, f"expected None, got {described(result)}"))
        return None
    if isinstance(form, dict):
        if not isinstance(result, dict):
            raise Misfit(Failure("type", name, f"expected a dictionary, got {described(result)}"))
        for key in form:
            if key not in result:
                raise Misfit(Failure("type", name, f"the dictionary has no {key!r}"))
        return {key: conform(part, result[key], key) for key, part in form.items()}
    names = ", ".join(_name(part, f"{name}[{i}]") for i, part in enumerate(form))
    if not isinstance(result, (tuple, list)) or len(result) != len(form):
        raise Misfit(Failure("type", name, f"expected {len(form)} values, {names}; got {described(result)}"))
    return type(form)(conform(part, value, _name(part, name)) for part, value in zip(form, result, strict=True))


def _name(form: Form, otherwise: str) -> str:
    return form.name if isinstance(form, (Array, Number)) else otherwise


def _array(form: Array, result: Any) -> np.ndarray:
    fits = isinstance(result, np.ndarray) and result.dtype == np.float64
    kind = "shape" if fits else "type"
    if not (fits and _fits(form.shape, result.shape)):
        wanted = f"float64 [{', '.join(map(str, form.shape))}]"
        raise Misfit(Failure(kind, form.name, f"expected {wanted}, got {described(result)}"))
    finite = np.isfinite(result)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        word = "NaN" if np.isnan(result[first]) else "infinity"
        raise Misfit(Failure("finite", form.name, f"{word} at {list(first)}"))
    return result


def _fits(wanted: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(isinstance(w, str) or w == n for w, n in zip(wanted, shape, strict=True))


def _number(form: Number, result: Any) -> int | float:
    if isinstance(result, np.ndarray) and result.ndim == 0:
        result = result[()]
    allowed = (int, np.integer) if form.kind is int else (int, np.integer, float, np.floating)
    if isinstance(result, (bool, np.bool_)) or not isinstance(result, allowed):
        article = "an int" if form.kind is int else "a float"
        raise Misfit(Failure("type", form.name, f"expected {article}, got {described(result)}"))
    if abs(result) > LARGEST:  # not NaN
        raise Misfit(Failure("finite", form.name, "far too large"))
    result = form.kind(result)
    if result != result:
        raise Misfit(Failure("finite", form.name, "NaN"))
    return result


def described(value: Any) -> str:
    """A value's type and shape: "float64 [6, 10]", "list of 3", "None"."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} [{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def same(a: Any, b: Any) -> bool:
    """Two plain values are equal to the last bit (NaN to NaN)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def close(expected: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Equal to within `tolerance` of the largest expected value, or of 1."""
    expected, got = np.asarray(expected), np.asarray(got)
    return bool((np.abs(expected - got) <= tolerance * max(1.0, np.abs(expected).max(initial=0.0))).all())


def orthonormal(place: str, Q: np.ndarray) -> Failure | None:
    """A failure unless the columns of Q are orthonormal."""
    apart = np.abs(Q.T @ Q - np.eye(Q.shape[1]))
    if not apart.size or apart.max() <= 1e-8:
        return None
    worst = [int(i) for i in np.unravel_index(apart.argmax(), apart.shape)]
    numbers = f"{place}^T {place} differs from the identity by {apart.max():.2g} at {worst}"
    return Failure("values", place, "its columns are not orthonormal", numbers)


class Places:
    """Values and what they must be, place by place: "W_in[0]", "b_out[1]", "k"."""

    def __init__(self) -> None:
        self._wrong: list[Failure] = []
        self._right: dict[str, bool] = {}  # by name, in order: every place of this name is right

    def add(
        self, place: str, expected: Any, got: Any, mistakes: Mapping[str, Any] | None = None, hint: str = ""
    ) -> "Places":
        """Compare one place.

        Args:
            expected: an array or a number; got has the same shape.
            mistakes: what the value would be after a well-known mistake, by the sentence that names it.
            hint: a question that leads on.
        """
        name, right = place.split("[")[0], close(expected, got)
        self._right[name] = right and self._right.get(name, True)
        if not right:
            what, values = difference(expected, got)
            named = [sentence for sentence, value in (mistakes or {}).items() if close(value, got)]
            self._wrong.append(Failure("values", place, what, values, (), "".join(named[:1]), hint))
        return self

    def failure(self) -> Failure | None:
        """The first place that is wrong, with the names of what is right, or None."""
        fine = tuple(name for name, right in self._right.items() if right)
        return replace(self._wrong[0], fine=fine) if self._wrong else None


def difference(expected: Any, got: Any) -> tuple[str, str]:
    """Two sentences on the first entry that differs: without and with its values."""
    expected, got = np.asarray(expected, dtype=np.float64), np.asarray(got, dtype=np.float64)
    apart = np.abs(expected - got)
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    first = tuple(int(i) for i in np.argwhere(~(apart <= TOLERANCE * scale))[0])
    relative = apart.max() / max(np.abs(expected).max(), np.finfo(float).tiny)
    at = f"first difference at {list(first)}" if first else "another value"
    numbers = f"expected {expected[first]:.4g}, got {got[first]:.4g}"
    if expected.ndim:
        shape = f"float64 [{', '.join(map(str, expected.shape))}]"
        return f"expected {shape}, got {shape}; {at}", f"{numbers} (max relative {relative:.2g})"
    return at, numbers
