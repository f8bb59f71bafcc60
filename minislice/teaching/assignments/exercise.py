"""What a question is, and how an answer is judged: the contract between the assignments and whoever runs them.

Two run the student's function: `feedback.check` in the student's notebook, and the grader in a process of its own. Both

1. take the cases of a question, smallest first, and call the function with `case.arguments`, by position, in order
2. give what came back, and the arguments as they were after the call, to `examine`
3. show the first `Failure`, the grader without its `values`: those would give the hidden cases away

A case's arguments, and what a function returns, are plain values: None, bool, int, float, str, NumPy arrays of float64,
int64 or bool, and tuples, lists and dictionaries of such. They can cross a pipe as dtype, shape and bytes.

An answer is judged by the properties it must have, and against the full-width toy networks of `toy`, never against
another version of the function that is asked for. `judging` has what judges need.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .forms import Form, Misfit, conform, described, same


@dataclass(frozen=True)
class Failure:
    """Why an answer is wrong.

    Args:
        kind: "missing", "exception", "changed", "type", "shape", "finite" or "values", in the order they are looked at.
        where: the place, as the student calls it: "b_out[1]".
        what: what is wrong there, in one line or two, without a number of the case.
        values: the numbers, for the eyes of whoever may know the case.
        fine: names of results that are right.
        mistake: what was probably done, where it is recognised.
        hint: a question that leads on.
        wrong: names of results that are wrong, if every result was looked at.
    """

    kind: str
    where: str
    what: str
    values: str = ""
    fine: tuple[str, ...] = ()
    mistake: str = ""
    hint: str = ""
    wrong: tuple[str, ...] = ()

    def lines(self, values: bool = True) -> list[str]:
        """The failure in words, line by line, with or without the numbers of the case."""
        parts = [self.where, self.what, self.values if values else ""]
        fine = ", ".join(f"{name} ok" for name in self.fine)
        lines = ": ".join(part for part in parts if part).split("\n")
        lines += [self.mistake, fine and f"{fine}.", self.hint and f"Hint: {self.hint}"]
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
        name: of the function; `notebooks/assignments/answers` has a right one under this name.
        points: for all cases passed.
        difficulty: stars, 1 to 3.
        text: what to do and the equation, Markdown.
        hints: in layers, each says more than the one before.
        cases: from a random generator, the cases, smallest first.
        returns: from the arguments, the form of the result.
        judge: from the arguments and a result of that form with finite numbers, a Failure or None.
        parts: names of results, separated by spaces, with the points for them alone; without, it is all or nothing.
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
    parts: Mapping[str, int] = field(default_factory=dict)

    def share(self, failures: Sequence[Failure | None]) -> float:
        """The share of the points for what all cases together show: the parts that are right in every one."""
        failures = [failure for failure in failures if failure]
        if not all(failure.wrong for failure in failures):
            return 0.0
        wrong = {name for failure in failures for name in failure.wrong}
        right = sum(points for names, points in self.parts.items() if wrong.isdisjoint(names.split()))
        return right / self.points if failures else 1.0


@dataclass(frozen=True)
class MutationQuestion:
    """A check to write: `check(candidate, rng)` raises an exception if the candidate is wrong.

    `candidate` is the reference or a mutant: a function of plain values, with positional arguments, that returns plain
    values. Whoever runs the check may keep the candidate in another process than the check, and send values across.

    Args:
        takes: the candidate's arguments by name, and a letter for each side of their arrays: "DH" for W_in [D, H].
        shown: mutants by name that the student sees; `hidden`, those they don't.
    """

    name: str
    points: int
    minutes: int
    difficulty: int
    text: str
    hints: Sequence[str]
    takes: Mapping[str, str]
    reference: Callable[..., Any]
    shown: Mapping[str, Callable[..., Any]]
    hidden: Mapping[str, Callable[..., Any]]

    largest = 1024  # a side of an argument's array
    reference_seeds = 20  # the reference must be accepted with every one of so many generators
    mutant_seeds = 3  # a mutant is killed if it is rejected with every one of so many

    def allowed(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """The arguments of a question to a candidate, which is computed where the grader runs.

        Raises:
            ValueError: arrays of other shapes than the candidate takes: NumPy could make a huge result of small ones.
        """
        sizes: dict[str, int] = {}
        for (name, letters), value in zip(self.takes.items(), arguments, strict=False):
            if isinstance(value, np.ndarray):
                sides = list(zip(letters, value.shape, strict=False))
                fits = value.ndim == len(letters) and all(sizes.setdefault(side, n) == n for side, n in sides)
            else:
                fits = value is None or not letters
            if not fits or max(sizes.values(), default=0) > self.largest:
                form = f"an array [{', '.join(letters)}]" if letters else "a number"
                got = described(value)
                raise ValueError(f"{name} must be {form} with sides of at most {self.largest}, got {got}; {sizes}")
        return arguments

    def try_out(
        self, rejects: "Callable[[Callable[..., Any], int], Failure | None]", order: np.random.Generator
    ) -> "Kills":
        """Run a check on all candidates.

        The right function and the mutants come in random order, and every trial has a number of its own: a check that
        could count its trials, or know a number again, would still learn nothing about the candidate.

        Args:
            rejects: runs the student's check on a candidate with the generator of a trial's number; returns None if the
                check accepted it, and how it raised (`raised`) if not.
            order: draws the order of the trials.
        """
        mutants = {**self.shown, **self.hidden}
        trials = ["the right function"] * self.reference_seeds + list(mutants) * self.mutant_seeds
        survived = set()
        for trial, index in enumerate(order.permutation(len(trials))):
            name = trials[index]
            rejected = rejects(mutants.get(name, self.reference), trial)
            if rejected and name not in mutants:
                return Kills(rejected, (), tuple(mutants))
            if not rejected and name in mutants:
                survived.add(name)
        return Kills(None, tuple(n for n in mutants if n not in survived), tuple(n for n in mutants if n in survived))


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
    """A question answered in words and graded by hand; `notebooks/assignments/answers` has one."""

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
    misfits = [] if question.parts else None
    try:
        result = conform(question.returns(arguments), result, "the result", misfits)
        with np.errstate(all="ignore"):
            failure = question.judge(arguments, result)
        return replace(Failure(*misfits[0].args), fine=failure.fine, wrong=failure.wrong) if misfits else failure
    except Misfit as misfit:
        return Failure(*misfit.args)
    except np.linalg.LinAlgError:
        return Failure("values", "", "the numbers are so large that they can't be examined")
