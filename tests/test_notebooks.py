"""The notebooks run from clean, and what is committed of their outputs belongs to their sources.

Every structural rule is also run against a notebook that breaks it, and must fail there.
"""

import copy
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOPICS = (
    *("00_quickstart", "01_layernorm_to_rmsnorm", "02_computational_invariance", "03_principal_components"),
    *("04_residual_adapters", "05_slicing", "06_inference_cost", "07_a_real_language_model"),
    *("08_does_my_model_have_it", "09_beyond_the_paper"),
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
    """A question without an answer in it, an empty cell for the student, then the answer: folded, and tagged."""
    asked = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("**Exercise ")]
    assert 3 <= len(asked) <= 5, f"{len(asked)} exercises"
    for index in asked:
        question, empty, answer, solution = notebook.cells[index : index + 4]
        assert "<details>" not in question.source, "the answer is in the question"
        assert empty.cell_type == "code" and empty.source == "# your code" and not empty.outputs, "no empty cell"
        assert "solution" not in empty.metadata.get("tags", []), "the empty cell would not be handed out"
        assert answer.cell_type == "markdown" and answer.source.startswith("<details>"), "not collapsed"
        hidden = solution.metadata.jupyter
        assert solution.cell_type == "code" and hidden.source_hidden and hidden.outputs_hidden, "not hidden"
        assert "assert " in solution.source, "asserts nothing"
        assert all("solution" in cell.metadata.tags for cell in (answer, solution)), "would be handed out"


def perplexities_are_compared_with_errors(notebook):
    """By `perplexity_ratio`, on the same windows; a perplexity by itself compares nothing."""
    source = "\n".join(lines(notebook))
    assert "minislice.perplexity(" not in source and "equal_size(" not in source, "a comparison without an error"
    printed = "".join(texts(notebook))
    assert "window_losses(" not in source or re.search(r"\d ± \d", printed), "no standard error is printed"


def small_cells(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert sum(length <= 10 for length in lengths) > 0.8 * len(lengths), "most cells have under ten lines"
    assert max(lengths) <= 20, max(lengths)


RULES = (
    *(executed_in_order, without_errors_or_debris, without_absolute_paths, opens_and_closes),
    *(figures_are_read, exercises_have_solutions, perplexities_are_compared_with_errors, small_cells),
)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


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


def handout_command():
    """The command in notebooks/README.md that makes a handout, as one line."""
    readme = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"jupyter nbconvert --to notebook --output-dir=handout[^`]*", readme)
    return " ".join(command.replace("\\\n", " ").split())


def without_answers(handout, notebook):
    """Every question with its empty cell, and no line of any solution's source, text or output."""
    assert len(tagged(handout, "student")) == len(tagged(notebook, "student")) >= 3
    assert not tagged(handout, "solution")
    whole = json.dumps(handout)
    for cell in tagged(notebook, "solution"):
        told = cell.source.splitlines() + [
            line for output in cell.get("outputs", []) for line in output.get("text", "").splitlines()
        ]
        for line in told:
            if len(line) > 40:  # shorter ones, such as a call, may well stand elsewhere
                assert json.dumps(line)[1:-1] not in whole, f"an answer is handed out: {line}"


def test_the_documented_command_makes_a_handout_without_answers(tmp_path):
    pytest.importorskip("nbconvert", reason="comes with Jupyter")
    command = handout_command().replace("--output-dir=handout", f"--output-dir={tmp_path}")
    program, *arguments = shlex.split(command.replace("notebooks/*.ipynb", ""))
    paths = [str(path) for path in NOTEBOOKS]
    done = subprocess.run([sys.executable, "-m", program, *arguments, *paths], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for path in NOTEBOOKS:
        without_answers(read(tmp_path / path.name), read(path))
        with pytest.raises(AssertionError):
            without_answers(read(path), read(path))
        leaky = read(tmp_path / path.name)
        leaky.cells += [nbformat.v4.new_markdown_cell(cell.source) for cell in tagged(read(path), "solution")]
        with pytest.raises(AssertionError, match="an answer is handed out"):
            without_answers(leaky, read(path))


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

    def hide(notebook, **hidden):
        for cell in notebook.cells:
            cell.metadata.get("jupyter", {}).update(hidden)

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
        "a path in code": (without_absolute_paths, lambda n: source(n, '"mini-llama"', '"/home/me/models/llama"')),
        "no title": (opens_and_closes, lambda n: n.cells.pop(0)),
        "no closing cell": (opens_and_closes, lambda n: n.cells.pop()),
        "another model": (opens_and_closes, lambda n: source(n, 'MODEL = "mini-', 'MODEL = "facebook/')),
        "a figure without a reading": (figures_are_read, lambda n: source(n, "*Reading:", "*")),
        "a solution in the open": (exercises_have_solutions, lambda n: hide(n, source_hidden=False)),
        "a solution's output in the open": (exercises_have_solutions, lambda n: hide(n, outputs_hidden=False)),
        "a solution without a check": (exercises_have_solutions, lambda n: source(n, "assert ", "print")),
        "an answer in the question": (
            exercises_have_solutions,
            lambda n: source(n, "**Exercise 1.**", "**Exercise 1.** <details>42</details>"),
        ),
        "no cell for the student": (exercises_have_solutions, lambda n: n.cells.remove(tagged(n, "student")[0])),
        "a solution in the student's cell": (
            exercises_have_solutions,
            lambda n: source(n, "# your code", "# your code: k = 128"),
        ),
        "a solution without its tag": (
            exercises_have_solutions,
            lambda n: tagged(n, "solution")[0].metadata.update(tags=[]),
        ),
        "perplexities without an error": (
            perplexities_are_compared_with_errors,
            lambda n: source(n, "window_losses(model", "minislice.perplexity(model"),
        ),
        "no error printed": (
            perplexities_are_compared_with_errors,
            lambda n: [cell.update(outputs=[]) for cell in code_cells(n)],
        ),
        "a long cell": (small_cells, lambda n: code_cells(n)[0].update(source="x = 1\n" * 30)),
    }, break_


@pytest.mark.parametrize("mistake", mistakes()[0] if NOTEBOOKS else ())
def test_every_rule_can_fail(mistake):
    cases, break_ = mistakes()
    rule, change = cases[mistake]
    rule(read(NOTEBOOKS[0]))
    with pytest.raises((AssertionError, AttributeError)):
        rule(break_(change))
