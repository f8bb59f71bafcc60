"""Assignments are written in Markdown, `texts/NAME.md`: goal, notation, questions, hints. Code adds the judges."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .exercise import Assignment, Task
from .feedback import checker

TEXTS = Path(__file__).parent / "texts"
HEAD = re.compile(r"# (.+)\n\n- difficulty: ([★☆]{3})\n- goal: (.+)\n- before: (.+)\n\s*((?s:.*))")
SECTION = re.compile(r"(\w+)\n\n((\d+) minutes, .+, (\d+) points\n\n(?s:.*?))(?:\n\nHints:\n\n((?s:.*)))?")


def read(name: str, **judged: Task) -> tuple[Assignment, Callable[..., bool]]:
    """The assignment of `texts/NAME.md`, and the function that its notebook calls.

    Args:
        judged: the questions by name, without their text; a question in words is in the text alone.
    """
    text = (TEXTS / f"{name}.md").read_text(encoding="utf-8")
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    title, difficulty, goal, before, notation = _parts(HEAD, head, name)
    questions, written = [], []
    for section in sections:
        asked, task, minutes, points, hints = _parts(SECTION, section.strip(), name)
        about = {"name": asked, "text": task, "minutes": int(minutes), "points": int(points)}
        about["hints"] = re.findall(r"^\d\. (.+)$", hints or "", flags=re.MULTILINE)
        question = replace(judged.get(asked, Task()), **about)
        (questions if asked in judged else written).append(question)
    assignment = Assignment(name, title, difficulty, goal, before, notation.strip(), questions, written)
    return assignment, checker(assignment)


def _parts(form: re.Pattern, text: str, name: str) -> tuple[str, ...]:
    if match := form.fullmatch(text):
        return match.groups()
    raise ValueError(f"texts/{name}.md isn't written as the other texts are, from {text[:40]!r} on")
