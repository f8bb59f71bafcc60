"""The cells of a notebook by their grade_id: the course's source, which is trusted, and a submission, which isn't."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGEST = 20 << 20  # bytes of a submitted notebook


@dataclass(frozen=True)
class Submission:
    """What a student handed in: the sources of the code cells with a grade_id, and the ids that occur more than once.

    `unreadable` says why there is no notebook to speak of.
    """

    answers: Mapping[str, str] = field(default_factory=dict)
    duplicates: frozenset[str] = frozenset()
    unreadable: str = ""


def submission(file: Path, folder: Path) -> Submission:
    """Read a submitted notebook.

    Args:
        folder: the student's own: a link that leads out of it is not followed.
    """
    if not file.is_file():
        return Submission(unreadable=f"no {file.name} was handed in")
    if not file.resolve().is_relative_to(folder.resolve()):
        return Submission(unreadable=f"{file.name} is a link to another place")
    try:
        if file.stat().st_size > LARGEST:
            return Submission(unreadable=f"{file.name} has more than {LARGEST >> 20} MB")
        cells = _cells(file)
    except (ValueError, OSError, RecursionError):
        return Submission(unreadable=f"{file.name} is not a notebook")
    answers: dict[str, str] = {}
    seen: set[str] = set()
    duplicates: set[str] = set()
    for cell in cells:
        grade_id = _nbgrader(cell).get("grade_id")
        if not isinstance(grade_id, str):
            continue
        if grade_id in seen:
            duplicates.add(grade_id)
        seen.add(grade_id)
        if cell.get("cell_type") == "code":
            answers[grade_id] = _text(cell)
    return Submission(answers, frozenset(duplicates))


def given(file: Path, answers: Sequence[str]) -> list[tuple[str, str]]:
    """The source's code cells that students don't write and that aren't tests: names and texts, in order.

    An import from minislice, which is not there where students' code runs, is left out.

    Args:
        answers: grade_ids of the cells that students write; all must be in the source.

    Raises:
        ValueError: no notebook there, or not the one of this assignment.
    """
    try:
        cells = _cells(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"the source {file} can't be read: {error}") from None
    found = {_nbgrader(cell).get("grade_id") for cell in cells}
    if missing := [answer for answer in answers if answer not in found]:
        raise ValueError(f"the source {file} has no cell {missing[0]}: make it again with assignment.py build")
    return [
        (f"given {index}", _without_minislice(_text(cell)))
        for index, cell in enumerate(cells)
        if cell.get("cell_type") == "code" and not _nbgrader(cell).get("grade") and not _nbgrader(cell).get("solution")
    ]


def _cells(file: Path) -> list[dict[str, Any]]:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("not a notebook")
    return cells


def _nbgrader(cell: dict[str, Any]) -> dict[str, Any]:
    metadata = cell.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return nbgrader if isinstance(nbgrader, dict) else {}


def _text(cell: dict[str, Any]) -> str:
    source = cell.get("source")
    return source if isinstance(source, str) else "".join(map(str, source if isinstance(source, list) else []))


def _without_minislice(text: str) -> str:
    tree = ast.parse(text)
    kept = [statement for statement in tree.body if "minislice" not in {m.split(".")[0] for m in _modules(statement)}]
    return "\n".join(map(ast.unparse, kept))


def _modules(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    return [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
