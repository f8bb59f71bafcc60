"""What a student's notebook calls: `check(rotate)` shows the smallest case that fails, and says what is wrong there.

`check(rotate, hint=2)` also gives two hints; `check(rotate, seed=7)` takes other cases.
"""

import copy
import linecache
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .exercise import Assignment, Failure, raised
from .forms import described


def checker(assignment: Assignment) -> Callable[..., bool]:
    """The function `check` of an assignment; a mutation exercise calls it `score`."""
    questions = {question.name: question for question in assignment.questions}

    def check(function: Callable[..., Any], *, hint: int = 0, seed: int = 0) -> bool:
        """Try a function, print what is wrong with it, and return whether it is right."""
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
        notebook, own_name = sys._getframe(1).f_globals, getattr(function, "__name__", type(function).__name__)
        name = next((name for name in questions if notebook.get(name) is function), own_name)
        if name not in questions:
            print(f"{assignment.name} has no function {name}; it asks for {', '.join(questions)}")
            return False
        question = questions[name]
        mark = question.mark(partial(called, function), np.random.default_rng(seed))
        heading, *details = mark.lines()
        if mark.status not in ("passed", "unanswered"):
            heading += f"  {mark.share * question.points:.0f} of {question.points} points"
        print(f"{assignment.name.upper()}.{name}  {heading}", *details, sep="\n")
        if mark.status == "passed":
            return True
        for layer, text in enumerate(question.hints[:hint], 1):
            print(f"Hint {layer}: {text}")
        if hint < len(question.hints):
            print(f"More help: {assignment.tool}({name}, hint={hint + 1})")
        return False

    return check


def called(
    function: Callable, arguments: Mapping[str, Any], candidate: Callable | None = None, seed: int | None = None
) -> tuple[Any, Mapping[str, Any]] | Failure:
    """Call a function in this process, with a copy of the arguments, as `exercise.Call` says."""
    after = copy.deepcopy(arguments)
    try:
        if candidate:
            return function(candidate, np.random.default_rng(seed)), after
        return function(*after.values()), after
    except (Exception, SystemExit) as error:
        entries = [part.items() if isinstance(part, dict) else [(name, part)] for name, part in arguments.items()]
        shapes = ", ".join(f"{name} {described(value)}" for group in entries for name, value in group)
        message = f"{error}\ncalled with {shapes}" if shapes else str(error)
        code = getattr(function, "__code__", None)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
        line = frames[-1].lineno if frames else None  # the last line of the student's code
        text = linecache.getline(frames[-1].filename, line) if frames else ""
        return raised(type(error).__name__, message.strip(), line, text)
