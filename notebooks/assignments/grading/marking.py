"""Mark one answer: call the student's function on hidden cases, judge what comes back, say what is wrong with it."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minislice.teaching.assignments import exercise
from minislice.teaching.assignments.exercise import Failure, MutationQuestion

from .sandbox import Sandbox
from .submission import Submission

NAMEABLE = re.compile(r"[A-Z]\w{2,30}(Error|Exit|Interrupt|Iteration)")  # exceptions whose name goes into a comment
PLAIN = "it must be made of None, bool, int, float, str, NumPy arrays of numbers, and tuples, lists and dictionaries"
REASONS = {  # what is different from the student's notebook
    "NameError": "Only the cells of this answer and of those above it are read, from top to bottom.",
    "ModuleNotFoundError": "Only NumPy and Python's standard library are there.",
}


@dataclass(frozen=True)
class Mark:
    share: float  # of the question's points, 0 to 1
    status: str  # "passed", "partial", "failed", "stopped", "unanswered", "missing", "duplicate" or "unreadable"
    lines: tuple[str, ...]  # for the student, without a number of the hidden cases


def mark(
    assignment: exercise.Assignment,
    question: exercise.Question | MutationQuestion,
    submission: Submission,
    given: Sequence[tuple[str, str]],
    sandbox: Sandbox,
    secret: bytes,
    reference: Mapping[str, str],
) -> Mark:
    """Mark one question of a submission.

    A function may call those of the questions before it. If it fails after the student's answers to them, it is tried
    again after right ones: a slip in one function costs its own points alone.

    Args:
        given: the source's own cells, which are executed before the student's.
        secret: what the hidden cases are drawn from.
        reference: right answers by grade_id.
    """
    name, title = assignment.answer_id(question), f"{assignment.name.upper()}.{question.name}"
    for status, wrong, what in (
        ("unreadable", submission.unreadable, submission.unreadable),
        ("duplicate", name in submission.duplicates, f"there is more than one cell for this answer (grade_id {name})"),
        ("missing", name not in submission.answers, f"the cell for this answer is not there (grade_id {name})"),
    ):
        if wrong:
            return Mark(0.0, status, (f"{title}  {what}",))
    answers = [assignment.answer_id(other) for other in assignment.questions]
    earlier = answers[: answers.index(name)]
    student = [(other, submission.answers[other]) for other in earlier if other in submission.answers]
    right = [(f"right {other}", reference[other]) for other in earlier]
    marks = []
    for before in (student, [*student, *right], right) if earlier else ([],):
        trial = _Trial(question, [*given, *before, (name, submission.answers[name])], sandbox)
        judge = trial.judge_check if isinstance(question, MutationQuestion) else trial.judge_function
        share, failure, heading = judge(lambda *words: _seed(secret, name, *words))
        if failure and failure.status == "missing":
            mark = Mark(share, "unanswered", (f"{title}  {failure.what}",))
        else:
            stopped = failure and failure.status == "stopped"
            status = "passed" if share == 1 else "partial" if share else "stopped" if stopped else "failed"
            mark = Mark(share, status, (f"{title}  {heading}", *(failure.lines(values=False) if failure else ())))
        marks.append(mark)
        if share == 1:
            break
    return max(marks, key=lambda mark: mark.share)


def _seed(secret: bytes, *names: str) -> int:
    """63 bits of the secret and the names, from which the secret can't be told."""
    return int.from_bytes(hashlib.sha256(b"\0".join([secret, *map(str.encode, names)])).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class _Trial:
    """Cells, the last of which is the answer to a question, and where they are executed.

    The judges return the share of the points, what is wrong, and a heading. `seed` is a number for some words.
    """

    question: exercise.Question | MutationQuestion
    cells: Sequence[tuple[str, str]]
    sandbox: Sandbox

    def judge_function(self, seed: Callable[..., int]) -> tuple[float, Failure | None, str]:
        cases = list(self.question.cases(np.random.default_rng(seed())))
        failures: list[Failure | None] = []
        for case in cases:
            failures.append(self._try(case))
            if failures[-1] and not self.question.parts:
                break
        first = next((index for index, failure in enumerate(failures) if failure), None)
        if first is None:
            return 1.0, None, f"ok, {len(cases)} cases"
        heading = f"FAILED at case {first + 1} of {len(cases)}  ({cases[first]})"
        return self.question.share(failures), failures[first], heading

    def _try(self, case: exercise.Case) -> Failure | None:
        answer = self.sandbox.call(self.cells, self.question.name, list(case.arguments.values()))
        if answer[0] != "returned":
            return self._failure(*answer)
        try:
            after = dict(zip(case.arguments, answer[2], strict=True))
            return exercise.examine(self.question, case.arguments, answer[1], after)
        except Exception as error:  # a result that was made to break the comparison costs its own question alone
            return Failure("the result", f"it can't be examined ({type(error).__name__})")

    def judge_check(self, seed: Callable[..., int]) -> tuple[float, Failure | None, str]:
        def rejects(candidate: Callable[..., Any], trial: int, right: bool) -> Failure | None:
            """How the check raised, or None. If it was stopped, it hasn't raised: only the right function minds."""
            answer = self.sandbox.call(self.cells, self.question.name, candidate=candidate, seed=seed(str(trial)))
            accepts = answer[0] == "returned" or (answer[0] == "stopped" and not right)
            return None if accepts else self._failure(*answer)

        return self.question.try_out(rejects, np.random.default_rng(seed("order")))

    def _failure(self, kind: str, what: str = "", line: int = 0) -> Failure:
        if kind == "raised":
            lines = re.split(r"\r\n|\r|\n", self.cells[-1][1])
            line = line if 0 < line <= len(lines) else 0  # whatever else it says is no line of the answer
            code = lines[line - 1][:100] if line else ""
            code = "".join(character if character.isprintable() else " " for character in code)  # no line of its own
            what = what if NAMEABLE.fullmatch(what) else "an exception"
            return replace(exercise.raised(what, "", line or None, code), mistake=REASONS.get(what, ""))
        if kind == "missing":
            return Failure("", f"the cell defines no function {self.question.name}", status="missing")
        if kind == "unsendable":
            return Failure("the result", PLAIN)
        return Failure("", what, status="stopped")
