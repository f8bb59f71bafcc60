"""What a question is, and how an answer is judged: the contract between the assignments and whoever runs them.

`feedback.check` in the student's notebook and the grader both give a question's `mark` a way to call the student's
function, and show the `Mark`; the grader leaves out its numbers, which would tell the hidden cases. Arguments and
results are plain values: None, bool, int, float, str, arrays of float64, int64 or bool, and lists and dictionaries of
these; a result may be a tuple.

A judge asks for the properties of a right answer, never for one particular solution; `judging` has its tools.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .forms import Form, Misfit, conform, described, same

SIDE, NUMBERS = 1_000, 10_000  # of an array that a candidate takes


@dataclass(frozen=True)
class Failure:
    where: str  # the place, in the student's words: "b_out[1]"
    what: str  # what is wrong there, in one or two lines, without any number of the case
    values: str = ""  # the numbers: the student's notebook shows them, the grader doesn't
    fine: tuple[str, ...] = ()  # names of the results that are right
    mistake: str = ""  # the likely mistake, if the judge knows it
    hint: str = ""  # a question that leads on
    wrong: tuple[str, ...] = ()  # names of the results that are wrong, if the judge looked at every result
    status: str = "failed"  # "unanswered" if nothing is written yet, "stopped" if a limit was reached

    def lines(self, values: bool = True) -> list[str]:
        """The failure in words, line by line, with or without the numbers of the case."""
        parts = [self.where, self.what, self.values if values else ""]
        fine = ", ".join(f"{name} ok" for name in self.fine)
        lines = ": ".join(part for part in parts if part).split("\n")
        lines += [self.mistake, fine and f"{fine}.", self.hint and f"Hint: {self.hint}"]
        return [line for line in lines if line]


# Calls a student's function with arguments by name, and returns its result and the arguments afterwards, or how it
# failed. A check is called with a candidate, and with a random generator of a seed.
Call = Callable[[Mapping[str, Any], Callable | None, int | None], tuple[Any, Mapping[str, Any]] | Failure]


@dataclass(frozen=True)
class Mark:
    share: float  # of the question's points, 0 to 1
    heading: str
    failure: Failure | None = None

    @property
    def status(self) -> str:
        """In one word: "passed", "partial", or what the failure says."""
        if self.failure and not self.share:
            return self.failure.status
        return "passed" if self.share == 1 else "partial"

    def lines(self, values: bool = True) -> list[str]:
        """The mark in words, line by line, with or without the numbers of the case."""
        details = self.failure.lines(values) if self.failure else []
        tried = self.status in ("passed", "partial", "failed", "stopped")
        return [self.heading, *details] if tried else details


@dataclass(frozen=True)
class Case:
    sizes: Mapping[str, int]
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items())


Cases = Iterator[Case]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question that students answer in words, graded by hand; and what all questions have, from `texts/`."""

    name: str = ""  # of the function or question: the answer is under this name in `notebooks/assignments/answers`
    text: str = ""  # minutes, difficulty, importance and points; then what to do, and the equation, in Markdown
    minutes: int = 0
    points: int = 0
    hints: Sequence[str] = ()  # each says more than the one before


@dataclass(frozen=True)
class Question(Task):
    """A function to write. Without `parts`, it gets all of its points or none."""

    cases: Callable[[np.random.Generator], Iterable[Case]]  # the smallest first
    returns: Callable[..., Form]  # takes the arguments by name
    judge: Callable[..., Failure | None]  # takes a result of this form with finite numbers, and the arguments by name
    parts: Mapping[str, int] = field(default_factory=dict)  # points by names of results, separated by spaces

    def mark(self, call: Call, rng: np.random.Generator) -> Mark:
        """Try a function on all cases, or up to the first that fails if no part has points of its own."""
        cases, failed = list(self.cases(rng)), []
        for number, case in enumerate(cases, 1):
            answer = call(case.arguments, None, None)
            failure = answer if isinstance(answer, Failure) else self.examine(case.arguments, *answer)
            if failure:
                failed.append((f"FAILED at case {number} of {len(cases)}  ({case})", failure))
                if not self.parts:
                    break
        if not failed:
            return Mark(1.0, f"ok, {len(cases)} cases")
        return Mark(self.share([failure for _, failure in failed]), *failed[0])

    def share(self, failures: Sequence[Failure]) -> float:
        """The share of the points: a part counts if it is right in every case."""
        if not all(failure.wrong for failure in failures):
            return 0.0
        wrong = {name for failure in failures for name in failure.wrong}
        return sum(points for names, points in self.parts.items() if wrong.isdisjoint(names.split())) / self.points

    def examine(self, arguments: Mapping[str, Any], result: Any, after: Mapping[str, Any]) -> Failure | None:
        """What is wrong with a result, or None. The arguments afterwards, `after`, must be what they were."""
        for name, value in arguments.items():
            if not same(value, after[name]):
                return Failure(name, "the function changes its argument: make a copy first")
        misfits: list[Misfit] = []
        try:
            result = conform(self.returns(**arguments), result, "the result", misfits)
            if misfits and not self.parts:
                raise misfits[0]
            with np.errstate(all="ignore"):
                failure = self.judge(result, **arguments)
            return replace(Failure(*misfits[0].args), fine=failure.fine, wrong=failure.wrong) if misfits else failure
        except Misfit as misfit:
            return Failure(*misfit.args)
        except np.linalg.LinAlgError:
            return Failure("", "the numbers are so large that they can't be examined")


@dataclass(frozen=True)
class MutationQuestion(Task):
    """A check to write: `check(candidate, rng)` raises an exception if the candidate is wrong.

    `candidate` is the reference or a mutant: a function with positional arguments that takes and returns plain values.
    The grader runs it in another process than the check.
    """

    reference: Callable[..., Any]
    shown: Sequence[Callable[..., Any]]  # the mutants that the student sees
    hidden: Mapping[str, Callable[..., Any]]  # the others, by what is wrong with them

    reference_seeds = 20  # the check must accept the reference with each of these generators
    mutant_seeds = 3  # a mutant is killed if the check rejects it with each of these generators

    def mark(self, call: Call, rng: np.random.Generator) -> Mark:
        """Run a check on all candidates, in random order: a check that counts its trials learns nothing."""
        shown = {function.__name__: function for function in self.shown}
        mutants = {**shown, **self.hidden}
        trials = [""] * self.reference_seeds + list(mutants) * self.mutant_seeds
        rng.shuffle(trials)
        alive = set()
        for name in trials:
            function = mutants.get(name, self.reference)
            answer = call({}, lambda *given, run=function: run(*allowed(given)), int(rng.integers(1 << 62)))
            rejected = isinstance(answer, Failure)
            if rejected and not name:
                return Mark(0.0, "FAILED  it raises on the right function", answer)
            if name and (not rejected or answer.status == "stopped"):  # a check that was stopped hasn't raised
                alive.add(name)
        seen = [name for name in shown if name in alive]
        failure = Failure("", f"still alive: {', '.join(seen)}") if seen else None
        kills = [f"{sum(name not in alive for name in some)} of {len(some)}" for some in (shown, self.hidden)]
        return Mark(1 - len(alive) / len(mutants), f"kills {kills[0]} shown and {kills[1]} hidden mutants", failure)


def allowed(arguments: Sequence[Any]) -> Sequence[Any]:
    """A candidate's arguments; a ValueError if NumPy, in the grader's process, could make gigabytes of them."""
    for value in arguments:
        small = isinstance(value, np.ndarray) and value.ndim <= 2 and value.size <= NUMBERS
        if not (value is None or np.isscalar(value) or (small and max(value.shape, default=0) <= SIDE)):
            form = f"numbers, and arrays of one or two sides up to {SIDE}, with up to {NUMBERS} numbers in all"
            raise ValueError(f"a candidate takes None, {form}; not {described(value)}")
    return copy.deepcopy(arguments)


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
        return Failure("", "not written yet", status="unanswered")
    where = "" if line is None else f"line {line}" + (f", `{code.strip()}`" if code else "")
    return Failure(where, name, message)
