"""What a student's notebook calls: `check(rotate)` shows the smallest case that fails, and says what is wrong there.

`check(rotate, hint=2)` also gives two hints; `check(rotate, seed=7)` takes other cases.
"""

import copy
import linecache
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from .exercise import Assignment, Case, Failure, MutationQuestion, Question, examine, raised
from .forms import described


def checker(assignment: Assignment) -> Callable[..., bool]:
    """The function `check` of an assignment; a mutation exercise calls it `score`."""
    questions = {question.name: question for question in assignment.questions}

    def check(function: Callable[..., Any], *, hint: int = 0, seed: int = 0) -> bool:
        """Try a function, print what is wrong with it, and return whether it is right."""
        notebook, own_name = sys._getframe(1).f_globals, getattr(function, "__name__", type(function).__name__)
        name = next((name for name in questions if notebook.get(name) is function), own_name)
        if name not in questions:
            print(f"{assignment.name} has no function {name}; it asks for {', '.join(questions)}")
            return False
        question = questions[name]
        run = _mutants if isinstance(question, MutationQuestion) else _cases
        share, failure, heading = run(question, function, seed)
        if failure and failure.status == "missing":
            heading, failure = failure.what, None
        print(f"{assignment.name.upper()}.{name}  {heading}")
        if share == 1:
            return True
        if failure:
            print(*failure.lines(), sep="\n")
        for layer, text in enumerate(question.hints[:hint], 1):
            print(f"Hint {layer}: {text}")
        if hint < len(question.hints):
            print(f"More help: {assignment.tool}({name}, hint={hint + 1})")
        return False

    return check


def _cases(question: Question, function: Callable[..., Any], seed: int) -> tuple[float, Failure | None, str]:
    cases = list(question.cases(np.random.default_rng(seed)))
    failures = [try_case(question, function, case) for case in cases]
    failed = [(case, failure) for case, failure in zip(cases, failures, strict=True) if failure]
    if not failed:
        return 1.0, None, f"ok, {len(cases)} cases"
    (case, failure), share = failed[0], question.share(failures)
    points = f"  {share * question.points:.0f} of {question.points} points" if question.parts else ""
    return share, failure, f"FAILED {len(failed)} of {len(cases)}  (seed {seed}: {case}){points}"


def try_case(question: Question, function: Callable[..., Any], case: Case) -> Failure | None:
    """Call a function, in this process, with a copy of the case's arguments."""
    after = copy.deepcopy(case.arguments)
    try:
        result = function(*after.values())
    except (Exception, SystemExit) as error:
        entries = [part.items() if isinstance(part, dict) else [(name, part)] for name, part in case.arguments.items()]
        shapes = ", ".join(f"{name} {described(value)}" for group in entries for name, value in group)
        return _how_raised(error, function, f"called with {shapes}")
    return examine(question, case.arguments, result, after)


def _mutants(question: MutationQuestion, check: Callable[..., Any], seed: int) -> tuple[float, Failure | None, str]:
    def rejects(candidate: Callable[..., Any], trial: int, right: bool) -> Failure | None:
        try:
            check(candidate, np.random.default_rng([seed, trial]))
        except (Exception, SystemExit) as error:
            return _how_raised(error, check)
        return None

    return question.try_out(rejects, np.random.default_rng(seed))


def _how_raised(error: BaseException, function: Callable[..., Any], called: str = "") -> Failure:
    """The exception, and the last line of the student's code before it."""
    code = getattr(function, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    line = frames[-1].lineno if frames else None
    text = linecache.getline(frames[-1].filename, line) if frames else ""
    return raised(type(error).__name__, f"{error}\n{called}".strip(), line, text)
