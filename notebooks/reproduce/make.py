"""Writes the notebooks of this folder: one template, a set of parameters for each family, so that they can't drift.

    python notebooks/reproduce/make.py

Outputs are not written: run the notebooks afterwards (README.md beside says how). `tests/test_reproduce_notebooks.py`
checks that each notebook's sources are the template's.
"""

import json
from pathlib import Path

from protocol import FAMILIES, Family

HERE = Path(__file__).parent

TITLE = """# {title}: the paper's tables, run again

**What it shows.** Tables {tables} of [SliceGPT](https://arxiv.org/abs/2401.15024) for {models}: the
paper's value, ours, the difference. With `PROFILE = "ci"`, as committed, every step runs on the embedded model
{stand_in} instead: its numbers are its own, and nothing of the paper's stands beside them.

**How long it takes.** "ci": a minute or so on two CPU cores. "paper" needs a GPU, and was not timed where this was
written; the paper's table 3 prints 44 minutes for slicing LLaMA-2-7B once on an H100, and there are three seeds, four
levels and two signals. Start with one model and one table. It can be interrupted at any time: finished rows are not run
again.

**Read before.** [00_quickstart](../00_quickstart.ipynb), [05_slicing](../05_slicing.ipynb). Licence: {licence}.

"paper" needs the hub (WikiText-2, Alpaca, the models), and for tables 7 to 10 and 3
`pip install -e ".[eval,recover]"`."""

PARAMETERS = """FAMILY = "{name}"
PROFILE = "ci"  # "paper": the paper's models, texts and sizes
MODELS = None  # such as ["{example}"]; None is all of the paper's
TABLES = None  # such as [1, 5]; None is all that have a row of this family
STREAM, PROCESSES = False, 1  # True: slice from disk, one layer in memory; and how many GPUs share it
ROWS = None  # such as 10: stop behind so many measurements
OUT = "results-{name}.jsonl"  # one record a line; go on with it by running this notebook again"""

CELLS: list[tuple[str, str]] = [
    ("markdown", TITLE),
    ("parameters", PARAMETERS),
    (
        "code",
        """from pathlib import Path

import datasets
import preflight
import protocol
import report
import reproduce
import results

from minislice.teaching import lecture, plots""",
    ),
    (
        "code",
        """lesson = lecture.begin()
datasets.disable_progress_bars()
profile = protocol.profile_for(FAMILY, PROFILE)
rows = protocol.rows(FAMILY, profile, TABLES, MODELS)
dtype = preflight.dtype_on(lesson.device)
settings = protocol.settings_of(rows, dtype)
print(f"{len(rows)} rows of tables {sorted({row.table for row in rows})}: {len(settings)} measurements in {dtype}")""",
    ),
    (
        "markdown",
        """## Preflight

What each model needs, how much of it this machine can run, and whether the hub gives the weights. What can't run is
skipped below, with this reason in its record.""",
    ),
    (
        "code",
        """machine = preflight.Machine.here(lesson.device, Path())
lecture.show(preflight.overview(rows, machine, dtype, STREAM))""",
    ),
    (
        "markdown",
        """## Tokens

Which tokens calibrate and which are measured on, by their hash: with the same tokenizer and text, yours are the same.
No window is in both. (Phi-2's tables have no perplexity; there is nothing to show.)""",
    ),
    (
        "code",
        """sliced = [setting for setting in settings if setting.measure == "perplexity" and setting.percent]
if sliced:
    lecture.show(preflight.token_sets(sliced[0]))""",
    ),
    (
        "markdown",
        """## The gate: dense models first

A dense perplexity more than 0.05 from print, or a mean accuracy more than 0.5 points, stops here: then tokenizer or
protocol differ, and nothing that is sliced from the model could be compared. (A stand-in has no printed value, so it
passes.)""",
    ),
    (
        "code",
        """about = {"family": FAMILY, "profile": profile, "device": lesson.device}
about |= {"stream": STREAM, "process_count": PROCESSES}
about |= {"command": f"notebooks/reproduce/{FAMILY}.ipynb, PROFILE = {PROFILE!r}"}""",
    ),
    (
        "code",
        """dense = [row for row in rows if row.percent == 0 and not row.dense]
print(reproduce.reproduce(dense, OUT, **about))""",
    ),
    (
        "markdown",
        """## The loop

Every other row: load, slice, recover where the table says so, measure. A record is on the disk before the next row
begins. Its key is the model's revision, minislice's commit, and the whole setting (level, calibration, signal, adapter,
dtype, seed); what has a record isn't run again, and a row that failed has its reason in the file and doesn't stop the
others.""",
    ),
    ("code", "print(reproduce.reproduce(rows, OUT, limit=ROWS, **about))"),
    (
        "markdown",
        """## Tables 1 and 5: perplexity

Ours ± the standard deviation over seeds; then the paper's value as *paper*, and the difference. "normalized" is the
signal of eq. 8, "raw" the norm's input, which the authors' code takes.""",
    ),
    (
        "code",
        """every = report.cells(FAMILY, profile, results.read(OUT))


def show(*tables):
    for number in tables:
        if lines := report.table_rows(number, every):
            print(f"\\n{report.title_of(number, profile)}")
            lecture.show(lines)


show(1, 5)""",
    ),
    (
        "markdown",
        """## Tables 7 to 10: zero-shot accuracy, before and after recovery fine-tuning

By the LM Evaluation Harness; version, metric and items are in the report. ± is the standard error. A *!* marks a slip
in print, kept as printed. The "ci" profile asks which words go on from these, in the form of two of the tasks: it says
nothing of them.""",
    ),
    ("code", "show(7, 8, 9, 10)"),
    (
        "markdown",
        """## Accuracy or perplexity against slicing

One picture of the tables above: of the first that this family is in, with the paper's values where they may be
compared.""",
    ),
    (
        "code",
        """first = min(cell.row.table for cell in every if cell.metric in ("perplexity", "average"))
metric = "perplexity" if first == 1 else "average"
chosen = [cell for cell in every if cell.row.table == first and cell.metric == metric and cell.row.settings]""",
    ),
    (
        "code",
        """def by_model(value):
    found = {}
    for cell in chosen:
        if cell.signal != "raw" and value(cell) is not None:
            levels, values = found.setdefault(cell.row.model, ([], []))
            levels.append(cell.row.percent)
            values.append(value(cell))
    return found""",
    ),
    (
        "code",
        """ours, papers = by_model(lambda cell: cell.ours), by_model(lambda cell: cell.paper)
plots.lines(ours, "slicing (% of the width deleted)", f"{metric}, table {first}", paper=papers);""",
    ),
    (
        "markdown",
        """*Reading: deleting more costs more; a perplexity that falls, or an accuracy that rises, by more than its
spread would be a reason to doubt the run.*""",
    ),
    (
        "markdown",
        """## Tables 2, 3, 11 and 12: cost, on this machine

Milliseconds are your machine's, so what compares with the paper is the ratio of sliced to dense, measured in one run.
Weights are random, for times don't depend on them; a dense row is the model beside the first sliced one. SparseGPT's
rows are printed only. `minislice cost` measures any other shape.""",
    ),
    ("code", "show(2, 3, 11, 12)"),
    (
        "markdown",
        """## The report

Markdown for people, a CSV for machines: every row of the family's tables, with what it was measured by and on, or "not
run".""",
    ),
    (
        "code",
        """written = report.write(OUT, f"report-{FAMILY}.md")
print(*written.values())
status = [cell.status.split(" (")[0] for cell in every]
print({word: status.count(word) for word in dict.fromkeys(status)})""",
    ),
    ("code", "lesson.end()"),
]


def notebook(name: str) -> dict:
    """The notebook of a family, without outputs."""
    family = FAMILIES[name]
    return {
        "cells": [_cell(index, kind, _filled(source, name, family)) for index, (kind, source) in enumerate(CELLS)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _filled(source: str, name: str, family: Family) -> str:
    """The template's text; only the first two cells have gaps."""
    if source not in (TITLE, PARAMETERS):
        return source
    models = list(family.sources)
    return source.format(
        name=name,
        title=family.title,
        tables=", ".join(map(str, family.tables())),
        models=models[0] if len(models) == 1 else f"{', '.join(models[:-1])} and {models[-1]}",
        stand_in=family.stand_in,
        licence=family.licence,
        example=models[0].split("-")[-1] if len(models) > 1 else models[0],
    )


def _cell(index: int, kind: str, source: str) -> dict:
    cell = {"cell_type": "markdown", "id": f"cell-{index:02d}", "metadata": {}, "source": source.splitlines(True)}
    if kind != "markdown":
        cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        cell["metadata"] = {"tags": ["parameters"]} if kind == "parameters" else {}
    return cell


if __name__ == "__main__":
    for name in FAMILIES:
        text = json.dumps(notebook(name), indent=1, ensure_ascii=False) + "\n"
        (HERE / f"{name}.ipynb").write_text(text, encoding="utf-8")
