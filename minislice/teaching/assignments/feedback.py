"""The function that a student's notebook calls: it runs a function on its cases and says in a few lines what is wrong.

- `check(rotate)` shows the smallest case that fails
- `check(rotate, hint=1)` also gives the first hint; `hint=2` gives two
- `check(rotate, seed=7)` takes other cases
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

    def check(function: Callable[..., Any], *, hint: int = 0, seed: int = 0) -> bool:
        """Try a function, print what is wrong with it, and return whether it is right."""
        name = _name_of(function, assignment)
        try:
            question = assignment.question(name)
        except ValueError as error:
            print(error)
            return False
        title = f"{assignment.name.upper()}.{name}"
        run = _mutants if isinstance(question, MutationQuestion) else _cases
        heading, failure, right = run(question, function, seed)
        print(f"{title}  {heading}")
        if right:
            return True
        if failure:
            print(*failure.lines(), sep="\n")
        for layer, text in enumerate(question.hints[:hint], 1):
            print(f"Hint {layer}: {text}")
        if hint < len(question.hints):
            print(f"More help: {assignment.tool}({name}, hint={hint + 1})")
        return False

    return check


def _name_of(function: Callable[..., Any], assignment: Assignment) -> str:
    """The name of the question: the notebook's variable that holds the function, or the function's own name."""
    frame = sys._getframe()
    while frame := frame.f_back:
        for question in assignment.questions:
            if function is frame.f_globals.get(question.name):
                return question.name
    return getattr(function, "__name__", type(function).__name__)


def _cases(question: Question, function: Callable[..., Any], seed: int) -> tuple[str, Failure | None, bool]:
    cases = question.cases(np.random.default_rng(seed))
    failures = [try_case(question, function, case) for case in cases]
    failed = [index for index, failure in enumerate(failures) if failure]
    if not failed:
        return f"ok, {len(cases)} cases", None, True
    first = failed[0]
    if failures[first].kind == "missing":
        return failures[first].what, None, False
    heading = f"FAILED {len(failed)} of {len(cases)}  (seed {seed}: {cases[first]})"
    if question.parts:
        heading += f"  {question.share(failures) * question.points:.0f} of {question.points} points"
    return heading, failures[first], False


def try_case(question: Question, function: Callable[..., Any], case: Case) -> Failure | None:
    """Call a function, in this process, with a copy of the case's arguments."""
    after = copy.deepcopy(case.arguments)
    try:
        result = function(*after.values())
    except (Exception, SystemExit) as error:
        return _how_raised(error, function, f"called with {_described(case)}")
    return examine(question, case.arguments, result, after)


def _mutants(question: MutationQuestion, check: Callable[..., Any], seed: int) -> tuple[str, Failure | None, bool]:
    def rejects(candidate: Callable[..., Any], trial: int) -> Failure | None:
        def asked(*arguments: Any) -> Any:
            return candidate(*copy.deepcopy(question.allowed(arguments)))

        try:
            check(asked, np.random.default_rng([seed, trial]))
        except (Exception, SystemExit) as error:
            return _how_raised(error, check)
        return None

    kills = question.try_out(rejects, np.random.default_rng(seed))
    if kills.rejected and kills.rejected.kind == "missing":
        return kills.rejected.what, None, False
    alive = [] if kills.rejected else [name for name in kills.survived if name in question.shown]
    failure = Failure("values", "", f"still alive: {', '.join(alive)}") if alive else kills.rejected
    return question.heading(kills), failure, not kills.survived


def _described(case: Case) -> str:
    """Type and shape of every argument, and of every entry of a dictionary."""
    words = []
    for name, value in case.arguments.items():
        parts = value.items() if isinstance(value, dict) else [(name, value)]
        words += [f"{part} {described(content)}" for part, content in parts]
    return ", ".join(words)


def _how_raised(error: BaseException, function: Callable[..., Any], called: str = "") -> Failure:
    """The exception, and the last line of the student's code before it."""
    code = getattr(function, "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    line = frames[-1].lineno if frames else None
    text = linecache.getline(frames[-1].filename, line) if frames else ""
    return raised(type(error).__name__, f"{error}\n{called}".strip(), line, text)
