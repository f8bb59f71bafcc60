"""Mark one answer: call the student's function on hidden cases, judge what comes back, say what is wrong with it."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minislice.teaching.assignments.exercise import Assignment, Failure, Mark, MutationQuestion, Question, raised

from .sandbox import Sandbox

NAMEABLE = re.compile(r"[A-Z]\w{2,30}(Error|Exit|Interrupt|Iteration)")  # exceptions whose name goes into a comment
PLAIN = "it must be made of None, bool, int, float, str, NumPy arrays of numbers, and tuples, lists and dictionaries"
REASONS = {  # what is different from the student's notebook
    "NameError": "Only the cells of this answer and of those above it are read, from top to bottom.",
    "ModuleNotFoundError": "Only NumPy and Python's standard library are there.",
}


def mark(
    assignment: Assignment,
    question: Question | MutationQuestion,
    answers: Mapping[str, str | Failure],
    given: Sequence[tuple[str, str]],
    reference: Mapping[str, str],
    sandbox: Sandbox,
    secret: bytes,
) -> Mark:
    """Mark one question of a submission.

    A function may call those of the questions before it. If it fails after the student's answers to them, it is tried
    again after right ones: a slip in one function costs its own points alone.

    Args:
        answers: the student's, by grade_id.
        given: the source's own cells, which are executed before the student's.
        reference: right answers by grade_id.
        secret: what the hidden cases are drawn from.
    """
    name = assignment.answer_id(question)
    if isinstance(answers[name], Failure):
        return Mark(0.0, "", answers[name])
    names = [assignment.answer_id(other) for other in assignment.questions]
    earlier = names[: names.index(name)]
    student = [(other, answers[other]) for other in earlier if isinstance(answers[other], str)]
    right = [(f"right {other}", reference[other]) for other in earlier]
    drawn = [*hashlib.sha256(b"\0".join([secret, name.encode()])).digest()]
    marks = []
    for before in (student, [*student, *right], right) if earlier else ([],):
        call = _caller(sandbox, [*given, *before, (name, answers[name])], question.name)
        try:
            marks.append(question.mark(call, np.random.default_rng(drawn)))
        except OSError:  # of this computer
            raise
        except Exception as error:  # a result that was made to break the comparison costs its own question alone
            marks.append(Mark(0.0, f"the result can't be examined ({type(error).__name__})", Failure("", "")))
        if marks[-1].share == 1:
            break
    return max(marks, key=lambda mark: mark.share)


def _caller(sandbox: Sandbox, cells: Sequence[tuple[str, str]], function: str) -> Callable:
    """What calls a function that the last of some cells defines, as `exercise.Call` says."""

    def call(arguments: Mapping[str, Any], candidate: Callable | None, seed: int | None) -> tuple | Failure:
        match sandbox.call(cells, function, list(arguments.values()), candidate, seed):
            case "returned", result, after:
                return result, dict(zip(arguments, after, strict=True))
            case "raised", name, line:
                return _raised(name, line, re.split(r"\r\n|\r|\n", cells[-1][1]))
            case ("missing",):
                return Failure("", f"the cell defines no function {function}", status="unanswered")
            case ("unsendable",):
                return Failure("the result", PLAIN)
            case _, why:
                return Failure("", why, status="stopped")

    return call


def _raised(name: str, number: int, lines: Sequence[str]) -> Failure:
    """The failure of an answer that claims to have raised an exception in one of its lines."""
    line = number if 0 < number <= len(lines) else None
    code = lines[line - 1][:100] if line else ""
    code = "".join(character if character.isprintable() else " " for character in code)  # no line of its own
    name = name if NAMEABLE.fullmatch(name) else "an exception"
    return replace(raised(name, "", line, code), mistake=REASONS.get(name, ""))
