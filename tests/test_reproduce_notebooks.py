"""The reproduction notebooks: one template, run in the "ci" profile, interrupted and gone on with; schema and trend.

What they measure is a small stand-in's; it is never compared with what the paper printed.
"""

import csv
import importlib.util
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import results
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from protocol import FAMILIES, profile_for
from report import COLUMNS
from test_notebooks import (
    LARGEST,
    code_cells,
    executed_in_order,
    figures_are_read,
    read,
    small_cells,
    texts,
    without_absolute_paths,
    without_errors_or_debris,
)

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks" / "reproduce"
EXTRAS = all(importlib.util.find_spec(package) for package in ("lm_eval", "peft"))

# What a kill in the third measurement looks like from inside the kernel.
INTERRUPTION = """import bench
whole, turns = bench.Bench.measure, iter(range(2))
def interrupted(self, setting, batch_size):
    if next(turns, None) is None:
        raise KeyboardInterrupt
    return whole(self, setting, batch_size)
bench.Bench.measure = interrupted"""


def template():
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources(notebook):
    return [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in notebook.cells]


def is_the_templates(notebook, name):
    assert sources(notebook) == sources(nbformat.from_dict(joined(template().notebook(name)))), (
        "not what make.py writes: run python notebooks/reproduce/make.py, then the notebook"
    )


def joined(notebook):
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def has_what_every_reproduction_has(notebook):
    first, parameters, last = notebook.cells[0], notebook.cells[1], notebook.cells[-1]
    assert first.source.startswith("# ") and last.source == "lesson.end()"
    for what in ("**What it shows.**", "**How long it takes.**", "**Read before.**", "Licence"):
        assert what in first.source, what
    assert parameters.metadata.tags == ["parameters"]
    for name in ("PROFILE", "MODELS", "TABLES", "OUT"):
        assert re.search(rf"^{name}\b.* = ", parameters.source, re.MULTILINE), name
    closing = "".join(output.get("text", "") for output in last.outputs)
    for what in ("minislice", "torch", "transformers", "Python", "seed", "device", "seconds"):
        assert what in closing, what
    titles = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("## ")]
    for part in ("Preflight", "Tokens", "gate", "loop", "Tables 1 and 5", "Tables 7 to 10", "Tables 2", "report"):
        assert any(part in title for title in titles), part


def shows_nothing_of_the_papers(notebook):
    """A stand-in's numbers stand alone: where an output says "paper", it is a title that says whose numbers it has."""
    for text in texts(notebook):
        for line in text.splitlines():
            assert "*paper" not in line and ("paper" not in line or line.startswith("On mini-")), line


RULES = (
    *(executed_in_order, without_errors_or_debris, without_absolute_paths, figures_are_read, small_cells),
    *(has_what_every_reproduction_has, shows_nothing_of_the_papers),
)


def run(notebook, folder):
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    environment = dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(FOLDER), os.environ.get("PYTHONPATH")]))
    environment["PYTHONWARNINGS"] = "ignore"
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute(env=environment)


def test_there_is_a_notebook_for_every_family():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_committed_notebook_is_the_templates_and_was_run_from_clean(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    is_the_templates(notebook, name)
    for rule in RULES:
        rule(notebook)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_notebook_is_interrupted_and_goes_on_and_its_report_is_whole(name, tmp_path):
    notebook, out = read(FOLDER / f"{name}.ipynb"), tmp_path / f"results-{name}.jsonl"
    notebook.cells.insert(2, nbformat.v4.new_code_cell(INTERRUPTION))
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        run(notebook, tmp_path)
    before = out.read_bytes().splitlines(keepends=True)
    assert len(before) == 2
    out.write_bytes(b"".join(before)[:-40])  # and the disk was slower than the kill
    notebook = read(FOLDER / f"{name}.ipynb")
    run(notebook, tmp_path)
    for rule in RULES:
        rule(notebook)
    lines = out.read_bytes().splitlines(keepends=True)
    assert lines[0] == before[0] and all(results.faults(json.loads(line)) == [] for line in lines)
    records = results.read(out)
    assert len(records) == len(lines), "no row was run twice"
    failed = [record["reason"] for record in records if record["status"] != "done"]
    assert not failed if EXTRAS else all("pip install" in reason for reason in failed), failed
    check_report(tmp_path / f"report-{name}", name)


def check_report(path, name):
    """The CSV's schema, its trend, and that nothing in it is the paper's."""
    with open(path.with_suffix(".csv"), newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert {int(line["table"]) for line in table} == set(FAMILIES[name].tables())
    assert all(line["paper_value"] == line["difference"] == "" for line in table)
    profile = profile_for(name, "ci")
    for line in table:
        assert line["model"] == profile.model and line["profile"] == "ci"
        if line["our_value"]:
            assert float(line["our_value"]) > 0 and float(line["seconds"]) > 0 and line["commit"] and line["revision"]
            assert line["hardware"] and "torch" in line["versions"] and name in line["command"]
        else:
            assert line["status"].startswith("not run")
    for number in ("1", "5"):
        by_level = {int(r["slicing_percent"]): float(r["our_value"]) for r in table if r["table"] == number}
        if by_level:
            assert by_level[0] < by_level[20] < by_level[30], "deleting more costs more"
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"## {profile.model}, in" in text and "### How each was measured" in text


def broken():
    def output(text):
        return nbformat.v4.new_output("stream", name="stdout", text=text)

    return {
        "the paper's value in a stand-in's table": lambda n: code_cells(n)[-3].outputs.append(
            output("55.5 *paper 27.64*")
        ),
        "no gate": lambda n: [cell.update(source=cell.source.replace("The gate", "The start")) for cell in n.cells],
        "no parameters": lambda n: n.cells[1].metadata.update(tags=[]),
        "no closing cell": lambda n: n.cells.pop(),
        "a cell not run": lambda n: code_cells(n)[2].update(execution_count=None),
        "a figure without a reading": lambda n: [
            cell.update(source=cell.source.replace("*Reading:", "*")) for cell in n.cells
        ],
    }


@pytest.mark.parametrize("mistake", broken())
def test_every_rule_can_fail(mistake):
    notebook = read(FOLDER / "opt.ipynb")
    broken()[mistake](notebook)
    with pytest.raises((AssertionError, AttributeError)):
        for rule in RULES:
            rule(notebook)


def test_a_notebook_that_drifted_is_found():
    notebook = read(FOLDER / "opt.ipynb")
    notebook.cells[4].source += "\nprint(1)"
    with pytest.raises(AssertionError):
        is_the_templates(notebook, "opt")


def test_a_report_with_the_papers_value_or_a_wrong_trend_is_found(tmp_path):
    def written(change):
        line = dict.fromkeys(COLUMNS, "x") | {"model": "mini-phi", "profile": "ci", "paper_value": "", "difference": ""}
        line |= {"our_value": "", "status": "not run", "command": "phi-2"}
        lines = [line | {"table": str(number)} for number in FAMILIES["phi-2"].tables()]
        change(lines)
        with open(tmp_path / "report.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)
        (tmp_path / "report.md").write_text("## mini-phi, in Phi-2's place\n### How each was measured\n")

    written(lambda lines: None)
    check_report(tmp_path / "report", "phi-2")
    for change in (
        lambda lines: lines[0].update(paper_value="72.24"),
        lambda lines: lines[0].update(our_value="72.24", seconds="0"),
        lambda lines: lines[0].update(status="done"),
        lambda lines: lines.pop(),
        lambda lines: lines[0].update(profile="paper"),
    ):
        written(change)
        with pytest.raises((AssertionError, ValueError)):
            check_report(tmp_path / "report", "phi-2")
