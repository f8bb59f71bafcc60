"""The cells of a notebook by their grade_id: the course's source, which is trusted, and a submission, which isn't."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
        return Submission(unreadable=f"no {file.name} was handed in")
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


def given(file: Path, answers: Sequence[str]) -> list[tuple[str, str]]:
    """The source's code cells that students don't write and that aren't tests: names and texts, in order.

    An import from minislice, which is not there where students' code runs, is left out. The source must have all of
    `answers`, the grade_ids of the cells that students write.
    """
    try:
        cells = _cells(file)
    except Exception as error:
        raise ValueError(f"the source {file} can't be read: {error}") from None
    if missing := set(answers) - {grade_id for grade_id, *_ in cells}:
        raise ValueError(f"the source {file} has no cell {min(missing)}: make it again with assignment.py build")
    texts = [text for _, text, kind in cells if kind == "given"]
    return [(f"given {index}", IMPORTS.sub("", text)) for index, text in enumerate(texts)]


def _cells(file: Path) -> list[tuple[str, str, str]]:
    """Of each cell its grade_id, its text and its kind; "given" is code that is neither a test nor an answer."""
    cells = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        tags, kind = cell["metadata"].get("nbgrader", {}), cell["cell_type"]
        given = kind == "code" and not tags.get("grade") and not tags.get("solution")
        cells.append((str(tags.get("grade_id", "")), "".join(cell["source"]), "given" if given else kind))
    return cells
