"""What a question is, and how an answer is judged: the contract between the assignments and whoever runs them.

`feedback.check` in the student's notebook and the grader both call the student's function with each case's arguments,
the smallest case first, give the result to `examine`, and show the first `Failure`; the grader leaves out its `values`,
which would tell the hidden cases. Arguments and results are plain values: None, bool, int, float, str, arrays of
float64, int64 or bool, and lists and dictionaries of these; a result may be a tuple.

A judge asks for the properties of a right answer, and compares what networks compute (`toy`). It never compares with
one particular solution. `judging` has tools for judges.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .forms import Form, Misfit, conform, described, same


@dataclass(frozen=True)
class Failure:
    where: str  # the place, in the student's words: "b_out[1]"
    what: str  # what is wrong there, in one or two lines, without any number of the case
    values: str = ""  # the numbers: the student's notebook shows them, the grader doesn't
    fine: tuple[str, ...] = ()  # names of the results that are right
    mistake: str = ""  # the likely mistake, if the judge knows it
    hint: str = ""  # a question that leads on
    wrong: tuple[str, ...] = ()  # names of the results that are wrong, if the judge looked at every result
    status: str = ""  # "missing" if nothing is written yet, "stopped" if a limit was reached

    def lines(self, values: bool = True) -> list[str]:
        """The failure in words, line by line, with or without the numbers of the case."""
        parts = [self.where, self.what, self.values if values else ""]
        fine = ", ".join(f"{name} ok" for name in self.fine)
        lines = ": ".join(part for part in parts if part).split("\n")
        lines += [self.mistake, fine and f"{fine}.", self.hint and f"Hint: {self.hint}"]
        return [line for line in lines if line]


@dataclass(frozen=True)
class Case:
    sizes: Mapping[str, int]
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items())


Cases = Iterator[Case]


@dataclass(frozen=True)
class Task:
    """A question that students answer in words, graded by hand; and what all questions have."""

    name: str  # of the function or question: the answer is under this name in `notebooks/assignments/answers`
    text: str  # minutes, difficulty, importance and points; then what to do, and the equation, in Markdown
    minutes: int
    points: int


@dataclass(frozen=True)
class Question(Task):
    """A function to write. Without `parts`, it gets all of its points or none."""

    hints: Sequence[str]  # each says more than the one before
    cases: Callable[[np.random.Generator], Iterable[Case]]  # the smallest first
    returns: Callable[..., Form]  # takes the arguments by name
    judge: Callable[..., Failure | None]  # takes a result of this form with finite numbers, and the arguments by name
    parts: Mapping[str, int] = field(default_factory=dict)  # points by names of results, separated by spaces

    def share(self, failures: Sequence[Failure | None]) -> float:
        """The share of the points: a part counts if it is right in every case."""
        failures = [failure for failure in failures if failure]
        if not all(failure.wrong for failure in failures):
            return 0.0
        wrong = {name for failure in failures for name in failure.wrong}
        right = sum(points for names, points in self.parts.items() if wrong.isdisjoint(names.split()))
        return right / self.points if failures else 1.0


@dataclass(frozen=True)
class MutationQuestion(Task):
    """A check to write: `check(candidate, rng)` raises an exception if the candidate is wrong.

    `candidate` is the reference or a mutant: a function with positional arguments that takes and returns plain values.
    The grader runs it in another process than the check.
    """

    hints: Sequence[str]
    takes: Mapping[str, str]  # the candidate's arguments, and a letter for each side of an array: "DH" for W_in [D, H]
    reference: Callable[..., Any]
    shown: Mapping[str, Callable[..., Any]]  # the mutants that the student sees, by name
    hidden: Mapping[str, Callable[..., Any]]

    largest = 1024  # a side of an argument's array
    reference_seeds = 20  # the check must accept the reference with each of these generators
    mutant_seeds = 3  # a mutant is killed if the check rejects it with each of these generators

    def allowed(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """A call's arguments; a ValueError if NumPy, in the grader's process, could broadcast them to a huge result."""
        sizes: dict[str, int] = {}
        for (name, letters), value in zip(self.takes.items(), arguments, strict=False):
            if isinstance(value, np.ndarray):
                sides = list(zip(letters, value.shape, strict=False))
                fits = value.ndim == len(letters) and all(sizes.setdefault(side, n) == n for side, n in sides)
            else:
                fits = value is None or not letters
            if not fits or max(sizes.values(), default=0) > self.largest:
                form = f"an array [{', '.join(letters)}]" if letters else "a number"
                bound = f"with sides of at most {self.largest}, got {described(value)}; {sizes}"
                raise ValueError(f"{name} must be {form} {bound}")
        return copy.deepcopy(arguments)

    def try_out(
        self, rejects: Callable[[Callable, int, bool], Failure | None], order: np.random.Generator
    ) -> tuple[float, Failure | None, str]:
        """Run a check on all candidates, in random order: a check that counts its trials learns nothing.

        Args:
            rejects: runs the student's check on a candidate with the generator of the trial's number, and is told if it
                is the right one; returns None if the check accepts it, otherwise how it raised (see `raised`).
            order: draws the order of the trials.

        Returns the share of the points, what is wrong, and a heading.
        """
        mutants = {**self.shown, **self.hidden}
        trials = ["the right function"] * self.reference_seeds + list(mutants) * self.mutant_seeds
        alive = set()
        for trial, index in enumerate(order.permutation(len(trials))):
            name = trials[index]
            function = mutants.get(name, self.reference)
            rejected = rejects(lambda *given, run=function: run(*self.allowed(given)), trial, name not in mutants)
            if rejected and name not in mutants:
                return 0.0, rejected, "FAILED  it raises on the right function"
            if not rejected and name in mutants:
                alive.add(name)
        shown = [name for name in self.shown if name in alive]
        failure = Failure("", f"still alive: {', '.join(shown)}") if shown else None
        kills = [f"{sum(n not in alive for n in some)} of {len(some)}" for some in (self.shown, self.hidden)]
        return 1 - len(alive) / len(mutants), failure, f"kills {kills[0]} shown and {kills[1]} hidden mutants"


@dataclass(frozen=True)
class Assignment:
    """One notebook: `goal` is what the student can do afterwards, `before` what is needed before."""

    name: str
    title: str
    difficulty: str  # of three stars
    goal: str
    before: str
    notation: str
    questions: Sequence[Question | MutationQuestion]
    written: Sequence[Task] = ()

    @property
    def minutes(self) -> int:
        return sum(question.minutes for question in (*self.questions, *self.written))

    @property
    def points(self) -> int:
        return sum(question.points for question in (*self.questions, *self.written))

    @property
    def tool(self) -> str:
        """The name of the function that tries an answer: `check`, or `score` if the student writes `check`."""
        return "score" if any(isinstance(question, MutationQuestion) for question in self.questions) else "check"

    def answer_id(self, question: Task) -> str:
        """The grade_id of the cell that the student fills in."""
        return f"{self.name}_{question.name}"

    def test_id(self, question: Task) -> str:
        """The grade_id of the test cell, which has the points."""
        return f"{self.name}_{question.name}_test"


def raised(name: str, message: str, line: int | None = None, code: str = "") -> Failure:
    """The failure of a function that raised the exception `name` in `line`, whose text is `code`."""
    if name == "NotImplementedError":
        return Failure("", "not written yet", status="missing")
    where = "" if line is None else f"line {line}" + (f", `{code.strip()}`" if code else "")
    return Failure(where, name, message)


def examine(question: Question, arguments: Mapping[str, Any], result: Any, after: Mapping[str, Any]) -> Failure | None:
    """What is wrong with a result, or None; `after` are the arguments after the call, which must not change them."""
    for name, value in arguments.items():
        if not same(value, after[name]):
            return Failure(name, "the function changes its argument: make a copy first")
    misfits: list[Misfit] = []
    try:
        result = conform(question.returns(**arguments), result, "the result", misfits)
        if misfits and not question.parts:
            raise misfits[0]
        with np.errstate(all="ignore"):
            failure = question.judge(result, **arguments)
        return replace(Failure(*misfits[0].args), fine=failure.fine, wrong=failure.wrong) if misfits else failure
    except Misfit as misfit:
        return Failure(*misfit.args)
    except np.linalg.LinAlgError:
        return Failure("", "the numbers are so large that they can't be examined")
