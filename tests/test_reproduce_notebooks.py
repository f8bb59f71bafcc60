"""The reproduction notebooks: all three have the same cells, so that one is run for all.

What they measure is a small stand-in's; it is never compared with what the paper printed.
"""

import csv
import os
from pathlib import Path

import make
import nbformat
import pytest
import results
from nbclient import NotebookClient
from protocol import FAMILIES, profile_for
from report import COLUMNS
from test_notebooks import RULES as LECTURE_RULES
from test_notebooks import code_cells, exercises_have_solutions, read, texts

FOLDER = Path(make.__file__).parent


def shows_nothing_of_the_papers(notebook):
    """A stand-in's numbers stand alone: where an output says "paper", it is a title that says whose numbers it has."""
    for text in texts(notebook):
        for line in text.splitlines():
            assert "*paper" not in line and ("paper" not in line or line.startswith("On mini-")), line


RULES = (*(rule for rule in LECTURE_RULES if rule is not exercises_have_solutions), shows_nothing_of_the_papers)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_committed_notebook_has_the_cells_of_all_and_was_run_from_clean(name):
    notebook = read(FOLDER / f"{name}.ipynb")
    nbformat.validate(notebook)
    assert f"Tables {', '.join(map(str, FAMILIES[name].tables()))} of" in notebook.cells[0].source
    assert notebook.cells[1].metadata.tags == ["parameters"]
    found, wanted = ([cell.source for cell in each.cells] for each in (notebook, make.notebook(name)))
    assert found == wanted, "run python notebooks/reproduce/make.py, then the notebook"
    for rule in RULES:
        rule(notebook)


def test_a_value_of_the_papers_beside_a_stand_ins_is_refused():
    notebook = read(FOLDER / "opt.ipynb")
    printed = nbformat.v4.new_output("stream", name="stdout", text="55.5 *paper 27.64*")
    code_cells(notebook)[-3].outputs.append(printed)
    with pytest.raises(AssertionError):
        shows_nothing_of_the_papers(notebook)


def shows_a_stand_in(lines, name):
    """The schema of a report's CSV, its trend, and that nothing in it is the paper's."""
    profile = profile_for(name, "ci")
    assert tuple(lines[0]) == COLUMNS and {int(line["table"]) for line in lines} == set(FAMILIES[name].tables())
    for line in lines:
        assert line["paper_value"] == line["difference"] == ""
        assert (line["model"], line["profile"]) == (profile.model, "ci")
        assert (float(line["our_value"]) > 0 and line["keys"]) if line["our_value"] else "not run" in line["status"]
    by_level = {int(line["slicing_percent"]): line["our_value"] for line in lines if line["table"] == "1"}
    assert float(by_level[0]) < float(by_level[20]) < float(by_level[30]), "deleting more costs more"


ROWS = "protocol.rows(profile, TABLES, MODELS)"
FEW = [(1, 0), (1, 20), (1, 30), (2, 0), (2, 25), (3, 30), (9, 0), (9, 30), (12, 0), (12, 50)]  # table and level


@pytest.mark.slow
def test_the_notebook_runs_and_its_report_is_whole(tmp_path, name="llama-2"):
    notebook = read(FOLDER / f"{name}.ipynb")
    for cell in code_cells(notebook):
        one_of_each_kind = f"[row for row in {ROWS} if (row.table, row.percent) in {FEW}]"
        cell.source = cell.source.replace(ROWS, one_of_each_kind)
        cell.source = cell.source.replace("PROFILE, lesson.device)", "PROFILE, lesson.device, seeds=1, limit=8)")
        cell.outputs, cell.execution_count = [], None
    paths = os.pathsep.join(filter(None, (str(FOLDER.parents[1]), str(FOLDER), os.environ.get("PYTHONPATH"))))
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    environment = dict(os.environ, MPLBACKEND="module://matplotlib_inline.backend_inline", PYTHONPATH=paths, **quiet)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, record_timing=False, resources=where).execute(env=environment)
    for rule in RULES:
        rule(notebook)
    records = results.read(tmp_path / f"results-{name}.jsonl")
    assert [record["reason"] for record in records if record["status"] != "done"] == []
    accuracy = next(record["facts"] for record in records if "piqa" in record["values"])
    assert {*accuracy["seconds"]} == {"load", "zero-shot", "all"}, "the dense model was loaded for its perplexity"
    text = (tmp_path / f"report-{name}.md").read_text(encoding="utf-8")
    assert "## mini-llama, in LLaMA-2's place" in text and "## How each was measured" in text
    with open(tmp_path / f"report-{name}.csv", newline="") as file:
        report = list(csv.DictReader(file))
    shows_a_stand_in(report, name)
    report[0]["paper_value"] = "72.24"
    with pytest.raises(AssertionError):
        shows_a_stand_in(report, name)
