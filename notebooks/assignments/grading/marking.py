"""Mark one answer: call the student's function on hidden cases, judge what comes back, say what is wrong with it."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minislice.teaching.assignments.exercise import (
    Assignment,
    Case,
    Failure,
    MutationQuestion,
    Question,
    examine,
    raised,
)

from .conversation import Answer
from .sandbox import Sandbox
from .submission import Submission

NAMEABLE = re.compile(r"[A-Z]\w{2,30}(Error|Exit|Interrupt|Iteration)")  # exceptions whose name goes into a comment
PLAIN = "it must be made of None, bool, int, float, str, NumPy arrays of numbers, and tuples, lists and dictionaries"


@dataclass(frozen=True)
class Mark:
    """What an answer is worth.

    Args:
        share: of the question's points, 0 to 1.
        status: "passed", "partial", "failed", "stopped", "unanswered", "missing", "duplicate" or
            "unreadable".
        lines: for the student, without a number of the hidden cases.
    """

    share: float
    status: str
    lines: tuple[str, ...]


def mark(
    assignment: Assignment,
    question: Question | MutationQuestion,
    submission: Submission,
    given: Sequence[tuple[str, str]],
    sandbox: Sandbox,
    secret: bytes,
    reference: Mapping[str, str] | None = None,
) -> Mark:
    """Mark one question of a submission.

    Args:
        given: the source's own cells, which are executed before the student's.
        secret: what the hidden cases are drawn from.
        reference: right answers by grade_id. A function that fails is tried again after the right answers to the
            questions before it: a slip in one function costs its own points alone.
    """
    name, title = assignment.answer_id(question), f"{assignment.name.upper()}.{question.name}"
    if submission.unreadable:
        return Mark(0.0, "unreadable", (f"{title}  {submission.unreadable}",))
    if name in submission.duplicates:
        return Mark(0.0, "duplicate", (f"{title}  there is more than one cell for this answer (grade_id {name})",))
    if name not in submission.answers:
        return Mark(0.0, "missing", (f"{title}  the cell for this answer is not there (grade_id {name})",))
    answer = _Answer(assignment, question, submission, given, sandbox, reference or {})
    judge = _mark_check if isinstance(question, MutationQuestion) else _mark_function
    share, failure, heading = judge(answer, question, lambda *trial: _seed(secret, name, *trial))
    if share == 1:
        return Mark(1.0, "passed", (f"{title}  {heading}",))
    lines = failure.lines(values=False) if failure else []
    if failure and failure.kind == "missing":
        return Mark(share, "unanswered", (f"{title}  {failure.what}",))
    status = "partial" if share else "stopped" if failure and failure.kind == "stopped" else "failed"
    return Mark(share, status, (f"{title}  {heading}", *lines))


def _seed(secret: bytes, *names: str) -> int:
    """63 bits of the secret and the names, from which the secret can't be told."""
    return int.from_bytes(hashlib.sha256(b"\0".join([secret, *map(str.encode, names)])).digest()[:8], "big") >> 1


def _mark_function(
    answer: "_Answer", question: Question, seed: Callable[..., int]
) -> tuple[float, Failure | None, str]:
    cases = question.cases(np.random.default_rng(seed()))
    first = _mark_cases(answer, question, cases)
    if first[0] < 1 and answer.helped:
        answer.cells = answer.helped
        return max(first, _mark_cases(answer, question, cases), key=lambda found: found[0])
    return first


def _mark_cases(answer: "_Answer", question: Question, cases: Sequence[Case]) -> tuple[float, Failure | None, str]:
    failures = []
    for case in cases:
        failures.append(answer.try_case(case))
        if failures[-1] and not question.parts:
            break
    for index, (case, failure) in enumerate(zip(cases, failures, strict=False), 1):
        if failure:
            return question.share(failures), failure, f"FAILED at case {index} of {len(cases)}  ({case})"
    return 1.0, None, f"ok, {len(cases)} cases"


def _mark_check(
    answer: "_Answer", question: MutationQuestion, seed: Callable[..., int]
) -> tuple[float, Failure | None, str]:
    order = np.random.default_rng(seed("order"))
    kills = question.try_out(lambda candidate, trial: answer.rejects(candidate, seed(str(trial))), order)
    if kills.rejected:
        return 0.0, kills.rejected, "FAILED  it raises on the right function"
    shown, hidden = (sum(name in mutants for name in kills.killed) for mutants in (question.shown, question.hidden))
    heading = f"kills {shown} of {len(question.shown)} shown and {hidden} of {len(question.hidden)} hidden mutants"
    return kills.share, None, heading


class _Answer:
    """The answer to one question, ready to be called."""

    def __init__(
        self,
        assignment: Assignment,
        question: Question | MutationQuestion,
        submission: Submission,
        given: Sequence[tuple[str, str]],
        sandbox: Sandbox,
        reference: Mapping[str, str],
    ):
        self.question, self.sandbox = question, sandbox
        own = assignment.answer_id(question)
        before = [assignment.answer_id(other) for other in assignment.questions]
        before = [name for name in before[: before.index(own)] if name in submission.answers]
        self.source = submission.answers[own]
        self.alone = [*given, (own, self.source)]
        self.cells = [*given, *((name, submission.answers[name]) for name in before), (own, self.source)]
        right = [(f"right {name}", reference[name]) for name in before if name in reference]
        self.helped = [*self.cells[:-1], *right, self.cells[-1]] if right else []

    def try_case(self, case: Case) -> Failure | None:
        """What is wrong with the function on one case, or None."""
        answer = self._call(arguments=list(case.arguments.values()))
        if answer.kind != "returned":
            return self._failure(answer)
        if len(answer.after) != len(case.arguments):
            return Failure("type", "the result", PLAIN)
        try:
            after = dict(zip(case.arguments, answer.after, strict=True))
            return examine(self.question, case.arguments, answer.result, after)
        except Exception as error:  # a result that was made to break the comparison costs its own question alone
            return Failure("values", "the result", f"it can't be examined ({type(error).__name__})")

    def rejects(self, candidate: Callable[..., Any], seed: int) -> Failure | None:
        """How a check raised on a candidate, or None. One that was stopped hasn't raised: only the reference minds."""
        answer = self._call(candidate=lambda *arguments: candidate(*self.question.allowed(arguments)), seed=seed)
        if answer.kind == "returned" or (answer.kind == "stopped" and candidate is not self.question.reference):
            return None
        return self._failure(answer)

    def _call(self, **what: Any) -> Answer:
        """Call the function, after the earlier answers, which it may use, or without, if they don't come to an end."""
        answer = self.sandbox.call(self.cells, self.question.name, **what)
        if answer.kind == "stopped" and not answer.executed and self.cells != self.alone:
            self.cells = self.alone
            return self._call(**what)
        return answer

    def _failure(self, answer: Answer) -> Failure:
        if answer.kind == "raised":
            lines = re.split(r"\r\n|\r|\n", self.source)
            code = lines[answer.line - 1][:100] if 0 < answer.line <= len(lines) else ""
            code = "".join(character if character.isprintable() else " " for character in code)  # no line of its own
            name = answer.name if NAMEABLE.fullmatch(answer.name) else "an exception"
            return raised(name, "", answer.line or None, code)
        if answer.kind == "missing":
            return Failure("missing", "", f"the cell defines no function {self.question.name}")
        if answer.kind == "unsendable":
            return Failure("type", "the result", PLAIN)
        return Failure("stopped", "", answer.why)
