"""List the assignments, or write the notebook of one: `python assignment.py build a3 --to source/a3/a3.ipynb`.

A source has a right answer in every answer cell, between the comments BEGIN SOLUTION and END SOLUTION. A release has
none, and is what nbgrader makes of the source. The same assignment gives the same bytes. There are no hidden tests:
`grade.py` has cases of its own, and for a notebook with hidden tests nbgrader warns that the student changed it.
"""

import argparse
import inspect
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from minislice.architecture.folder import place_for, require_file, whole_file
from minislice.checks import require_package
from minislice.command.cli import run_script
from minislice.command.output import print_result
from minislice.teaching.assignments import NAMES, assignment
from minislice.teaching.assignments.exercise import Assignment, MutationQuestion, Task

HELP = "list the assignments, or write the notebook of one"
ANSWERS = Path(__file__).parent / "answers"


def build(name: str, file: Path, release: bool = False, force: bool = False) -> None:
    """Write the notebook of an assignment, or its release, which students get; the file is whole or isn't there."""
    require_package("nbformat", "writing a notebook", "grading")
    import nbformat

    made = notebook(assignment(name), release)
    folder = Path(file).resolve().parent
    if not folder.is_dir():
        place_for(folder)  # a ValueError where there can be none
        folder.mkdir(parents=True)
    with whole_file(require_file(file, force)) as new:
        nbformat.write(made, new)


def notebook(given: Assignment, release: bool = False) -> dict:
    """An assignment as nbformat has notebooks."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    setup = f"""import numpy as np

from minislice.teaching.assignments.{given.name} import {given.tool}

rng = np.random.default_rng(0)  # for trials of your own"""
    cells = [_cell(new_markdown_cell, _title(given), f"{given.name}_title")]
    cells.append(_cell(new_code_cell, setup, f"{given.name}_setup"))
    for question in (*given.questions, *given.written):
        answer = given.answer_id(question)
        cells.append(_cell(new_markdown_cell, _heading(question), f"{answer}_text"))
        if type(question) is Task:
            text = "YOUR ANSWER HERE" if release else _solution(_written(given.name, question.name))
            cells.append(_cell(new_markdown_cell, text, answer, question.points, solution=True))
            continue
        signature, docstring, body = function_source(given.name, question.name).split('"""', 2)
        body = "    # YOUR CODE HERE\n    raise NotImplementedError()" if release else _solution(body[1:], "    ")
        cells.append(_cell(new_code_cell, f'{signature}"""{docstring}"""\n{body}', answer, solution=True))
        test = f"{given.tool}({question.name});"
        cells.append(_cell(new_code_cell, test, given.test_id(question), question.points))
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _cell(kind: Callable, text: str, grade_id: str, points: int | None = None, solution: bool = False) -> dict:
    """A cell with nbgrader's tags; what isn't for an answer is locked."""
    tags = {"schema_version": 3, "grade_id": grade_id, "solution": solution, "locked": not solution, "task": False}
    tags |= {"grade": False} if points is None else {"grade": True, "points": points}
    return kind(text, id=grade_id.replace("_", "-"), metadata={"nbgrader": tags})


def _solution(text: str, indent: str = "") -> str:
    """An answer between the comments by which nbgrader knows it."""
    return f"{indent}### BEGIN SOLUTION\n{text}\n{indent}### END SOLUTION"


def _title(given: Assignment) -> str:
    how_to = ANSWERS.parent / f"how_to_{given.tool}.md"
    return f"""# {given.name.upper()}: {given.title} {given.difficulty}

**Afterwards you can** {given.goal}.

**Before:** {given.before}. **Time:** about {given.minutes} minutes. **Points:** {given.points}.

{how_to.read_text(encoding="utf-8").strip()}

Only the cells for your answers are read: write helpers and imports into the cell that uses them. Import nothing but
NumPy and Python's standard library, since the grader has nothing else.

{given.notation}""".rstrip()


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
    return dict(re.findall(r"^# (\w+)\n\n(.*?)\s*(?=^# |\Z)", text, flags=re.DOTALL | re.MULTILINE))[question]


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
    rows, columns = [], ("name", "title", "difficulty", "minutes", "points")
    for given in map(assignment, NAMES):
        questions = [question.name for question in given.questions]
        rows.append({name: getattr(given, name) for name in columns} | {"questions": questions})
    line = "{name}  {title:28s} {difficulty}  {minutes:3d} min  {points:2d} points  "
    print_result(options, rows, "\n".join(line.format(**row) + ", ".join(row["questions"]) for row in rows))


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
