"""The notebooks run from clean, and what is committed of their outputs belongs to their sources.

Every structural rule is also run against a notebook that breaks it, and must fail there.
"""

import copy
import itertools
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOPICS = (
    *("00_quickstart", "01_layernorm_to_rmsnorm", "02_computational_invariance", "03_principal_components"),
    *("04_residual_adapters", "05_slicing", "06_inference_cost", "08_does_my_model_have_it"),
)
LARGEST = 1_000_000  # bytes of a file


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def texts(notebook):
    """Everything in the outputs that a reader sees as text."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def executed_in_order(notebook):
    cells = code_cells(notebook)
    assert cells and [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not run from clean"


def without_errors_or_debris(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", output.get("ename")
            assert output.get("name") != "stderr", output.text
    for text in texts(notebook):
        assert "Warning" not in text and "\r" not in text and "it/s" not in text, text
        assert not text.startswith("<") or text.startswith("<Figure size"), f"a bare object's repr: {text}"


def without_absolute_paths(notebook):
    for text in (*texts(notebook), *(cell.source for cell in notebook.cells)):
        found = re.search(r"(?<![\w./:])(/(home|work|tmp|root|Users|usr|var|opt)/|[A-Z]:\\)\S*", text)
        assert not found, found[0]


def opens_and_closes(notebook):
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == "markdown" and first.source.startswith("# "), "no title"
    for what in ("**What it shows.**", "**How long it takes.**", "**Read before.**"):
        assert what in first.source, what
    assert last.cell_type == "code" and last.source == "lesson.end()", "no closing cell"
    closing = "".join(output.get("text", "") for output in last.outputs)
    for what in ("minislice", "torch", "transformers", "Python", "seed", "device", "seconds"):
        assert what in closing, what
    assert sum(re.match(r"MODEL = \"mini-", line) is not None for line in lines(notebook)) == 1, "no single MODEL"


def lines(notebook):
    return [line for cell in code_cells(notebook) for line in cell.source.splitlines()]


def figures_are_read(notebook):
    """Every figure is followed by its reading, at most two cells (its assertions) later."""
    figures = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs):
            figures += 1
            after = [c.source for c in notebook.cells[index + 1 : index + 4] if c.cell_type == "markdown"]
            assert after and "*Reading:" in after[0], f"figure {figures} has no reading"
    assert figures, "no figure"


def exercises_have_solutions(notebook):
    asked = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("**Exercise ")]
    assert 3 <= len(asked) <= 5, f"{len(asked)} exercises"
    for index in asked:
        assert "<details>" in notebook.cells[index].source, "not collapsed"
        solution = notebook.cells[index + 1]
        assert solution.cell_type == "code" and solution.metadata.jupyter.source_hidden, "not hidden"
        assert "assert " in solution.source, "asserts nothing"


def small_cells(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert sum(length <= 10 for length in lengths) > 0.8 * len(lengths), "most cells have under ten lines"
    assert max(lengths) <= 20, max(lengths)


RULES = (
    *(executed_in_order, without_errors_or_debris, without_absolute_paths, opens_and_closes),
    *(figures_are_read, exercises_have_solutions, small_cells),
)


def read(path):
    return nbformat.read(path, as_version=4)


def skeleton(notebook):
    """What the outputs of two runs have in common: their kinds, cell by cell; a stream may come in several pieces."""
    kinds = [
        [(output.output_type, output.get("name"), *sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in code_cells(notebook)
    ]
    return [[kind for kind, _ in itertools.groupby(cell)] for cell in kinds]


def words(notebook):
    """The words of the printed text, cell by cell, without its numbers."""
    printed = [
        "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        for cell in code_cells(notebook)
    ]
    return [re.findall(r"[^\W\d_]{3,}", text) for text in printed]


def test_there_is_a_notebook_for_every_topic():
    assert tuple(path.stem for path in NOTEBOOKS) == TOPICS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_belong_to_a_clean_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    for rule in RULES:
        rule(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_clean_and_prints_what_is_committed(path, tmp_path):
    committed, fresh = read(path), read(path)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    environment = dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment["PYTHONWARNINGS"] = "ignore"  # tqdm's, where ipywidgets isn't installed
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources=where).execute(env=environment)
    executed_in_order(fresh)
    assert skeleton(fresh) == skeleton(committed), "outputs don't belong to the sources: run the notebook again"
    for index, (now, then) in enumerate(zip(words(fresh), words(committed), strict=True)):
        if "generate(" not in code_cells(fresh)[index].source and index < len(words(fresh)) - 1:
            assert now == then, f"cell {index + 1} prints something else than is committed: run the notebook again"
    assert not list(tmp_path.iterdir()), "a notebook leaves files behind"


def mistakes():
    def break_(change):
        notebook = copy.deepcopy(read(NOTEBOOKS[0]))
        change(notebook)
        return notebook

    def output(text, name="stdout"):
        return nbformat.v4.new_output("stream", name=name, text=text)

    def source(notebook, old, new):
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)

    return {
        "a cell not run": (executed_in_order, lambda n: code_cells(n)[2].update(execution_count=None)),
        "run out of order": (executed_in_order, lambda n: code_cells(n)[2].update(execution_count=7)),
        "an error": (
            without_errors_or_debris,
            lambda n: code_cells(n)[1].outputs.append(nbformat.v4.new_output("error", ename="ValueError")),
        ),
        "stderr": (without_errors_or_debris, lambda n: code_cells(n)[1].outputs.append(output("x", "stderr"))),
        "an object's repr": (without_errors_or_debris, lambda n: code_cells(n)[1].outputs.append(output("<Axes: >"))),
        "a progress bar": (without_errors_or_debris, lambda n: code_cells(n)[1].outputs.append(output("\r 5%| 9it/s"))),
        "a path printed": (without_absolute_paths, lambda n: code_cells(n)[1].outputs.append(output("in /home/me/x"))),
        "a path in code": (without_absolute_paths, lambda n: source(n, '"mini-opt"', '"/home/me/models/opt"')),
        "no title": (opens_and_closes, lambda n: n.cells.pop(0)),
        "no closing cell": (opens_and_closes, lambda n: n.cells.pop()),
        "another model": (opens_and_closes, lambda n: source(n, 'MODEL = "mini-opt"', 'MODEL = "facebook/opt-125m"')),
        "a figure without a reading": (figures_are_read, lambda n: source(n, "*Reading:", "*")),
        "a solution in the open": (
            exercises_have_solutions,
            lambda n: [cell.metadata.get("jupyter", {}).update(source_hidden=False) for cell in n.cells],
        ),
        "a solution without a check": (exercises_have_solutions, lambda n: source(n, "assert ", "print")),
        "a long cell": (small_cells, lambda n: code_cells(n)[0].update(source="x = 1\n" * 30)),
    }, break_


@pytest.mark.parametrize("mistake", mistakes()[0] if NOTEBOOKS else ())
def test_every_rule_can_fail(mistake):
    cases, break_ = mistakes()
    rule, change = cases[mistake]
    rule(read(NOTEBOOKS[0]))
    with pytest.raises((AssertionError, AttributeError)):
        rule(break_(change))
