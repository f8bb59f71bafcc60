"""Mark one answer: have the student's function called on hidden cases, and judge what comes back."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from minislice.teaching.assignments.exercise import Assignment, Failure, Mark, MutationQuestion, Question

from .sandbox import Sandbox


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
        call = partial(sandbox.call, [*given, *before, (name, answers[name])], question.name)
        try:
            marks.append(question.mark(call, np.random.default_rng(drawn)))
        except OSError:  # of this computer
            raise
        except Exception as error:  # a result that was made to break the comparison costs its own question alone
            marks.append(Mark(0.0, f"the result can't be examined ({type(error).__name__})", Failure("", "")))
        if marks[-1].share == 1:
            break
    return max(marks, key=lambda mark: mark.share)
