"""Committed notebooks: their outputs come from one clean run, their exercises hide the answers, their times are listed.

Every rule is also run against a notebook that breaks it, and must fail there. Executing the notebooks again is slow.
"""

import copy
import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import pytest
from forked import Forked

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))
import badges

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
README = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def texts(notebook):
    """Everything in the outputs that a reader sees as text."""
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def executed_in_order(notebook):
    cells = code_cells(notebook)
    assert cells and [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not run from clean"


def without_errors_or_debris(notebook):
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr", output
    for text in texts(notebook):
        assert "Warning" not in text and "\r" not in text and "it/s" not in text, text
        assert not text.startswith("<") or text.startswith("<Figure size"), f"a bare object's repr: {text}"


def without_absolute_paths(notebook):
    for text in (*texts(notebook), *(cell.source for cell in notebook.cells)):
        found = re.search(r"(?<![\w./:])(/(home|work|tmp|root|Users|usr|var|opt)/|[A-Z]:\\)\S*", text)
        assert not found, found[0]


def figures_are_read(notebook):
    """Every figure is followed by its reading, at most two cells (its assertions) later."""
    figures = [
        i for i, c in enumerate(notebook.cells) if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))
    ]
    assert figures, "no figure"
    for index in figures:
        after = [c.source for c in notebook.cells[index + 1 : index + 4] if c.cell_type == "markdown"]
        assert after and "*Reading:" in after[0], f"the figure of cell {index} has no reading"


def exercises_have_solutions(notebook):
    """A question without an answer in it, an empty cell for the student, then the answer: folded, and tagged."""
    asked = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("**Exercise ")]
    assert 3 <= len(asked) <= 5, f"{len(asked)} exercises"
    for index in asked:
        question, empty, answer, solution = notebook.cells[index : index + 4]
        assert re.search(r"\d+ minutes, difficulty ★.*, importance ★", question.source), "no minutes, no difficulty"
        assert "<details>" not in question.source, "the answer is in the question"
        assert empty.cell_type == "code" and empty.source == "# your code" and not empty.outputs, "no empty cell"
        assert answer.cell_type == "markdown" and answer.source.startswith("<details>"), "not collapsed"
        hidden = solution.metadata.get("jupyter")
        assert hidden == {"source_hidden": True, "outputs_hidden": True}, "not hidden"
        assert "assert " in solution.source, "asserts nothing"
        assert all("solution" in cell.metadata.tags for cell in (answer, solution)), "would be handed out"


def files_exist(notebook):
    """The files that a notebook names are still there; that its imports are, running it shows."""
    for cell in notebook.cells:
        for path in re.findall(r"(?:minislice|notebooks)/[\w/]+\.py", cell.source):
            assert (ROOT / path).is_file(), f"no file {path}"


RULES = (
    *(executed_in_order, without_errors_or_debris, without_absolute_paths, files_exist),
    *(figures_are_read, exercises_have_solutions),
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_belong_to_a_clean_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    for rule in RULES:
        rule(notebook)


def test_the_readme_lists_every_notebook_with_the_time_that_it_printed():
    """A time stands in one place, the last output of a notebook; the README's table repeats it."""
    printed = {path.stem: re.search(r"(\d+) of work", "".join(texts(read(path))))[1] for path in NOTEBOOKS}
    listed = dict(re.findall(r"^\| \[(\w+)\]\(\1\.ipynb\) \|.*?\| (\d+) s \|", README, flags=re.MULTILINE))
    assert len(printed) == 11 and listed == printed


def run_cells(path, folder, results) -> int:
    """Run a notebook's cells in order, as a kernel does, and write what each prints, and how many figures it draws."""
    from matplotlib import pyplot

    os.chdir(folder)
    names, ran = {"__name__": "__main__"}, []
    for number, cell in enumerate(code_cells(read(path)), 1):
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(cell.source, f"cell {number}", "exec"), names)
        figures = [pyplot.figure(index) for index in pyplot.get_fignums()]
        empty = [ax for figure in figures for ax in figure.axes if not ax.has_data()]
        assert not empty, f"cell {number} shows a figure before it is drawn"
        ran.append((printed.getvalue(), len(figures)))
        pyplot.close("all")
    results.write_text(json.dumps(ran))
    return 0


def words(text):
    return re.findall(r"[^\W\d_]{3,}", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_clean_and_prints_what_is_committed(path, tmp_path):
    folder, results = tmp_path / "folder", tmp_path / "results.json"
    folder.mkdir()
    ended = Forked(run_cells, path, folder, results).ended(timeout=400)
    assert ended.returncode == 0, ended.stdout
    *cells, end = code_cells(read(path))
    *ran, _ = json.loads(results.read_text())
    for cell, (printed, figures) in zip(cells, ran, strict=True):
        committed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        if "generate(" not in cell.source:
            assert words(printed) == words(committed), "something else is printed than is committed: run it again"
        assert figures == sum(output.output_type == "display_data" for output in cell.outputs)
    assert end.source == "lesson.end()" and not list(folder.iterdir()), "a notebook leaves files behind"


def without_answers(handout, notebook):
    """Every question with its empty cell, and no line of any solution's source, text or output."""
    assert len(tagged(handout, "student")) == len(tagged(notebook, "student")) >= 3
    assert not tagged(handout, "solution")
    whole = json.dumps(handout)
    for cell in tagged(notebook, "solution"):
        printed = [output.get("text", "") for output in cell.get("outputs", [])]
        for line in "\n".join([cell.source, *printed]).splitlines():
            if len(line) > 40:  # shorter ones, such as a call, may well stand elsewhere
                assert json.dumps(line)[1:-1] not in whole, f"an answer is handed out: {line}"


def test_the_documented_command_makes_a_handout_without_answers(tmp_path):
    pytest.importorskip("nbconvert", reason="comes with Jupyter")
    (command,) = re.findall(r"jupyter nbconvert --to notebook --output-dir=handout[^`]*", README)
    command = command.replace("\\\n", " ").replace("=handout", f"={tmp_path}").replace("notebooks/*.ipynb", "")
    program, *arguments = shlex.split(command)
    command = [sys.executable, "-m", program, *arguments, *map(str, NOTEBOOKS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for path in NOTEBOOKS:
        without_answers(read(tmp_path / path.name), read(path))
    leaky = read(tmp_path / path.name)
    leaky.cells += [nbformat.v4.new_markdown_cell(cell.source) for cell in tagged(read(path), "solution")]
    with pytest.raises(AssertionError, match="an answer is handed out"):
        without_answers(leaky, read(path))


def printing(text, name="stdout"):
    return lambda n: code_cells(n)[1].outputs.append(nbformat.v4.new_output("stream", name=name, text=text))


def replacing(old, new):
    return lambda n: [cell.update(source=cell.source.replace(old, new)) for cell in n.cells]


MISTAKES = {
    "run out of order": (executed_in_order, lambda n: code_cells(n)[2].update(execution_count=7)),
    "stderr": (without_errors_or_debris, printing("x", "stderr")),
    "an object's repr": (without_errors_or_debris, printing("<Axes: >")),
    "a path printed": (without_absolute_paths, printing("in /home/me/x")),
    "a file that moved": (files_exist, replacing("notebook 04", "minislice/options/adapters.py")),
    "a figure without a reading": (figures_are_read, replacing("*Reading:", "*")),
    "a solution in the open": (exercises_have_solutions, lambda n: [c.metadata.pop("jupyter", 0) for c in n.cells]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_rule_can_fail(mistake):
    rule, change = MISTAKES[mistake]
    notebook = copy.deepcopy(read(NOTEBOOKS[0]))
    rule(notebook)
    change(notebook)
    with pytest.raises(AssertionError):
        rule(notebook)


def test_the_address_is_the_one_of_pyproject(tmp_path):
    file = tmp_path / "pyproject.toml"
    for url, found in {"github.com/someone/minislice.git": "someone/minislice", "gitlab.com/x/minislice": None}.items():
        file.write_text(f'[project.urls]\nRepository = "https://{url}"\n')
        assert badges.repository(file) == found  # neither link would work elsewhere


def test_every_notebook_has_the_line_of_the_address_and_with_another_address_another_line():
    assert {*NOTEBOOKS} < {*badges.notebooks()}
    for path in badges.notebooks():
        place, before = path.relative_to(ROOT).as_posix(), json.loads(path.read_text("utf-8"))
        assert badges.with_badges(before, place, badges.repository()) == before, "run badges.py"
        after = badges.with_badges(before, place, "someone/minislice")
        title, empty, line = "".join(after["cells"][0]["source"]).split("\n")[:3]
        assert title.startswith("# ") and not empty and line.count("](https://") == 4
        assert f"someone/minislice/blob/main/{place})" in line and place.replace("/", "%2F") in line
        assert badges.with_badges(after, place, None) == badges.with_badges(before, place, None)
