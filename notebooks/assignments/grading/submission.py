"""Notebooks' answers by grade_id: of the course's source, which is trusted, and of a submission, which isn't."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from minislice.teaching.assignments.exercise import Assignment, Failure

LARGEST = 20 << 20  # bytes of a submitted notebook
IMPORTS = re.compile(r"^(from|import) +minislice\b[^\n(]*(\([^)]*\))?", flags=re.MULTILINE)


def submitted(file: Path, names: Iterable[str]) -> dict[str, str | Failure]:
    """The answers of these grade_ids in a notebook, or why an answer can't be marked."""
    try:
        cells = _cells(file)
    except ValueError as error:
        return dict.fromkeys(names, Failure("", str(error), status="unreadable"))
    answers: dict[str, str | Failure] = {}
    for name in names:
        match [text for grade_id, text, _ in cells if grade_id == name]:
            case [text]:
                answers[name] = text
            case []:
                what = f"the cell for this answer is not there (grade_id {name})"
                answers[name] = Failure("", what, status="missing")
            case _:
                what = f"there is more than one cell for this answer (grade_id {name})"
                answers[name] = Failure("", what, status="duplicate")
    return answers


def source(file: Path, assignment: Assignment) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The source's code cells that are neither answers nor tests, names and texts, and the answers by grade_id.

    Students' code runs without minislice and outside Jupyter. So imports from minislice are left out, and the functions
    that a student may call in a cell, `check` and `display`, do nothing.
    """
    file = file.resolve()
    answers = submitted(file, map(assignment.answer_id, assignment.questions))
    for answer in answers.values():
        if isinstance(answer, Failure):
            raise ValueError(f"the source {file} can't be used: {answer.what}; make it again with assignment.py build")
    texts = [f"{assignment.tool} = display = print"]
    texts += [IMPORTS.sub("", text) for _, text, given in _cells(file) if given]
    return [(f"given {index}", text) for index, text in enumerate(texts)], answers


def _cells(file: Path) -> list[tuple[str, str, bool]]:
    """Of each code cell its grade_id, its text, and whether it is neither a test nor an answer."""
    if not file.is_file():
        others = ", ".join(sorted(path.name for path in file.parent.glob("*.ipynb")))
        raise ValueError(f"there is no {file.name}" + (f", but {others}" if others else ""))
    if not file.resolve().is_relative_to(file.parent.resolve()):
        raise ValueError(f"{file.name} is a link to another place")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file.name} has more than {LARGEST >> 20} MB")
    cells = []
    try:
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            tags = cell["metadata"].get("nbgrader", {})
            given = not tags.get("grade") and not tags.get("solution")
            if cell["cell_type"] == "code":
                cells.append((tags.get("grade_id", ""), "".join(cell["source"]), given))
    except Exception:  # a student may have written anything into the file
        raise ValueError(f"{file.name} is not a notebook") from None
    return cells
