"""Assignments are written in Markdown, `texts/NAME.md`: goal, notation, questions, hints. Code adds the judges."""

import re
from collections.abc import Callable
from pathlib import Path

from .exercise import Assignment, MutationQuestion, Question, Task
from .feedback import checker

TEXTS = Path(__file__).parent / "texts"
HEAD = re.compile(r"# (.+)\n\n- difficulty: ([★☆]{3})\n- goal: (.+)\n- before: (.+)\n\s*((?s:.*))")
SECTION = re.compile(r"(\w+)\n\n((\d+) minutes, .+, (\d+) points\n\n(?s:.*?))(?:\n\nHints:\n\n((?s:.*)))?")


def read(name: str, **functions: tuple) -> tuple[Assignment, Callable[..., bool]]:
    """The assignment of `texts/NAME.md`, and the function that its notebook calls.

    Args:
        functions: what a question has besides its text: `cases`, `returns`, `judge` (and `parts`) of a `Question`,
            or `takes`, `reference`, `shown` and `hidden` of a `MutationQuestion`. A question in words has nothing.
    """
    text = (TEXTS / f"{name}.md").read_text(encoding="utf-8")
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    title, difficulty, goal, before, notation = _parts(HEAD, head, name)
    questions, written = [], []
    for section in sections:
        asked, task, minutes, points, hints = _parts(SECTION, section.strip(), name)
        about = (asked, task, int(minutes), int(points))
        hints = re.findall(r"^\d\. (.+)$", hints or "", flags=re.MULTILINE)
        if asked not in functions:
            written.append(Task(*about))
        elif isinstance(functions[asked][0], dict):
            takes, reference, shown, hidden = functions[asked]
            shown = {function.__name__: function for function in shown}
            questions.append(MutationQuestion(*about, hints, takes, reference, shown, hidden))
        else:
            questions.append(Question(*about, hints, *functions[asked]))
    assignment = Assignment(name, title, difficulty, goal, before, notation.strip(), questions, written)
    return assignment, checker(assignment)


def _parts(form: re.Pattern, text: str, name: str) -> tuple[str, ...]:
    if match := form.fullmatch(text):
        return match.groups()
    raise ValueError(f"texts/{name}.md isn't written as the other texts are, from {text[:40]!r} on")
