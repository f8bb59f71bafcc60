"""List the assignments, or write the notebook of one: `python assignment.py build a3 --to source/a3/a3.ipynb`.

A source has a right answer in every answer cell, between the comments BEGIN SOLUTION and END SOLUTION. A release has
none, and is what nbgrader makes of the source. The same assignment gives the same bytes. There are no hidden tests:
`grade.py` has cases of its own, and for a notebook with hidden tests nbgrader warns that the student changed it.
"""

import argparse
import inspect
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minislice.architecture.folder import require_file, whole_file
from minislice.command.cli import run_script
from minislice.command.output import print_result
from minislice.teaching.assignments import NAMES, assignment
from minislice.teaching.assignments.exercise import Assignment, MutationQuestion, Task

HELP = "list the assignments, or write the notebook of one"
ANSWERS = Path(__file__).parent / "answers"


def build(name: str, file: Path, release: bool = False, force: bool = False) -> None:
    """Write the notebook of an assignment, or its release, which students get; the file is whole or isn't there."""
    notebook = source(assignment(name))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(require_file(file, force)) as new:
        new.write_text(as_json(released(notebook) if release else notebook), encoding="utf-8")


def as_json(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def source(given: Assignment) -> dict[str, Any]:
    setup = f"""import numpy as np

from minislice.teaching.assignments.{given.name} import {given.tool}

rng = np.random.default_rng(0)  # for trials of your own"""
    cells = [_cell("markdown", _title(given), f"{given.name}_title"), _cell("code", setup, f"{given.name}_setup")]
    for question in given.questions:
        answer, test = given.answer_id(question), given.test_id(question)
        cells += [
            _cell("markdown", _heading(question), f"{answer}_text"),
            _cell("code", function_source(given.name, question.name), answer, solution=True),
            _cell("code", f"{given.tool}({question.name});", test, question.points),
        ]
    for question in given.written:
        answer = given.answer_id(question)
        cells += [
            _cell("markdown", _heading(question), f"{answer}_text"),
            _cell("markdown", _written(given.name, question.name), answer, question.points, solution=True),
        ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def released(notebook: dict[str, Any]) -> dict[str, Any]:
    def without_answer(cell: dict[str, Any]) -> dict[str, Any]:
        code = cell["cell_type"] == "code"
        gap = r"\1# YOUR CODE HERE\n\1raise NotImplementedError()" if code else "YOUR ANSWER HERE"
        text = re.sub(r"( *)### BEGIN SOLUTION\n.*?### END SOLUTION", gap, "".join(cell["source"]), flags=re.DOTALL)
        return {**cell, "source": text.splitlines(keepends=True)}

    return {**notebook, "cells": [without_answer(cell) for cell in notebook["cells"]]}


def _cell(kind: str, text: str, grade_id: str, points: int | None = None, solution: bool = False) -> dict[str, Any]:
    """A cell with nbgrader's tags; what isn't for an answer is locked."""
    tags = {"schema_version": 3, "grade_id": grade_id, "solution": solution, "locked": not solution, "task": False}
    tags |= {"grade": False} if points is None else {"grade": True, "points": points}
    cell = {"cell_type": kind, "id": grade_id.replace("_", "-"), "metadata": {"nbgrader": tags}}
    not_executed = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {**cell, "source": text.splitlines(keepends=True), **not_executed}


def _title(given: Assignment) -> str:
    return f"""# {given.name.upper()}: {given.title} {given.difficulty}

**Afterwards you can** {given.goal}.

**Before:** {given.before}. **Time:** about {given.minutes} minutes. **Points:** {given.points}.

{_HOW_TO[given.tool]}

Only the cells for your answers are read: write helpers and imports into the cell that uses them. Import nothing but
NumPy and Python's standard library, since the grader has nothing else.

{given.notation}""".rstrip()


_HOW_TO = {
    "check": """\
Replace every `raise NotImplementedError()` and run the cell below it: `check` tries your function on small random
cases and says what is wrong in the smallest one where it fails. `check(..., hint=1)` gives a first hint,
`check(..., seed=1)` takes other random numbers, as your grade does. Your functions may call each other. After a restart
of the kernel, run the cells again from the first.""",
    "score": """\
Replace `raise NotImplementedError()` and run the cell below it: `score` runs your check on the right function and on
all mutants, the three that you see and five that you don't. `score(check, hint=1)` gives a first hint. A check that
rejects the right function, with any of 20 random generators, gets no points; a mutant counts as killed if it is
rejected every time. To try your check by hand, copy a function from the text below into a cell of your own.""",
}


def _heading(question: Task) -> str:
    name = question.name.replace("_", " ") if type(question) is Task else f"`{question.name}`"
    text = f"## {name}\n\n{question.text}"
    if isinstance(question, MutationQuestion):
        text += f"\n\nThe right function:\n\n{_code(question.reference)}\n\nThree mutants:\n\n"
        text += "\n\n".join(map(_code, question.shown))
    return text


def _code(function: Callable) -> str:
    return f"```python\n{inspect.getsource(function).strip()}\n```"


def function_source(name: str, function: str) -> str:
    """The right answer to a question, as `answers/` has it: signature, docstring and body."""
    return inspect.getsource(runpy.run_path(str(ANSWERS / f"{name}.py"))[function]).strip()


def _written(name: str, question: str) -> str:
    """The answer under a heading of `answers/NAME.md`."""
    text = (ANSWERS / f"{name}.md").read_text(encoding="utf-8")
    answers = dict(re.findall(r"^# (\w+)\n\n(.*?)\s*(?=^# |\Z)", text, flags=re.DOTALL | re.MULTILINE))
    return f"### BEGIN SOLUTION\n{answers[question]}\n### END SOLUTION"


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    commands.add_parser("list", help="the assignments, with difficulty, minutes and points")
    make = commands.add_parser("build", help="write the notebook of one assignment, with answers")
    make.add_argument("name", metavar="NAME", help="of the assignment: a1 to a9, m1 to m3, c1")
    make.add_argument("--to", required=True, type=Path, metavar="FILE", help="the notebook to write")
    make.add_argument("--release", action="store_true", help="write what students get, without answers")
    make.add_argument("--force", action="store_true", help="overwrite the file")


def run(options: argparse.Namespace) -> None:
    if options.what == "build":
        build(options.name, options.to, options.release, options.force)
        return print_result(options, {"wrote": str(options.to)})
    rows, names = [], ("name", "title", "difficulty", "minutes", "points")
    for given in map(assignment, NAMES):
        rows.append({name: getattr(given, name) for name in names} | {"questions": [q.name for q in given.questions]})
    line = "{name}  {title:28s} {difficulty}  {minutes:3d} min  {points:2d} points  {questions}"
    text = "\n".join(line.format(**row | {"questions": ", ".join(row["questions"])}) for row in rows)
    print_result(options, rows, text)


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
