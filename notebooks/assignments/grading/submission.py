"""The cells of a notebook by their grade_id: the course's source, which is trusted, and a submission, which isn't."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minislice.teaching.assignments.exercise import Assignment

LARGEST = 20 << 20  # bytes of a submitted notebook
IMPORTS = re.compile(r"^(from|import) +minislice\b[^\n(]*(\([^)]*\))?", flags=re.MULTILINE)


@dataclass(frozen=True)
class Submission:
    """What a student handed in: code cells by grade_id, ids that occur more than once, and why it can't be read."""

    answers: Mapping[str, str] = field(default_factory=dict)
    duplicates: frozenset[str] = frozenset()
    unreadable: str = ""


def submission(file: Path, folder: Path) -> Submission:
    """Read a submitted notebook; a link that leads out of the student's folder is not followed."""
    if not file.is_file():
        others = ", ".join(sorted(path.name for path in folder.glob("*.ipynb")))
        return Submission(unreadable=f"no {file.name} was handed in" + (f", but {others}" if others else ""))
    if not file.resolve().is_relative_to(folder.resolve()):
        return Submission(unreadable=f"{file.name} is a link to another place")
    if file.stat().st_size > LARGEST:
        return Submission(unreadable=f"{file.name} has more than {LARGEST >> 20} MB")
    try:
        cells = _cells(file)
    except Exception:  # a student may have written anything into the file
        return Submission(unreadable=f"{file.name} is not a notebook")
    count = Counter(grade_id for grade_id, *_ in cells)
    answers = {grade_id: text for grade_id, text, kind in cells if kind in ("code", "given")}
    return Submission(answers, frozenset(name for name in count if name and count[name] > 1))


def given(file: Path, assignment: Assignment) -> list[tuple[str, str]]:
    """The source's code cells that students don't write and that aren't tests: names and texts, in order.

    Students' code runs without minislice and outside Jupyter. So imports from minislice are left out, and the functions
    that a student may call in a cell, `check` and `display`, do nothing.
    """
    try:
        cells = _cells(file)
    except Exception as error:
        raise ValueError(f"the source {file} can't be read: {error}") from None
    answers = {assignment.answer_id(question) for question in assignment.questions}
    if missing := answers - {grade_id for grade_id, *_ in cells}:
        raise ValueError(f"the source {file} has no cell {min(missing)}: make it again with assignment.py build")
    texts = [f"{assignment.tool} = display = print"]
    texts += [IMPORTS.sub("", text) for _, text, kind in cells if kind == "given"]
    return [(f"given {index}", text) for index, text in enumerate(texts)]


def _cells(file: Path) -> list[tuple[str, str, str]]:
    """Of each cell its grade_id, its text and its kind; "given" is code that is neither a test nor an answer."""
    cells = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        tags, kind = cell["metadata"].get("nbgrader", {}), cell["cell_type"]
        given = kind == "code" and not tags.get("grade") and not tags.get("solution")
        cells.append((str(tags.get("grade_id", "")), "".join(cell["source"]), "given" if given else kind))
    return cells
