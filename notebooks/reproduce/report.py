"""The report of a results file: Markdown for people, CSV for machines; the paper's values are labelled as the paper's.

    python notebooks/reproduce/report.py results.jsonl --out report.md

Every row of the family's tables is in it. What has no finished result says "not run", and why if that is known.
"""

import argparse
import csv
import dataclasses
import io
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from protocol import FAMILIES, METRICS, PROFILES, SLIPS, Profile, Row, Setting, rows
from results import how, read

from minislice.architecture.folder import require_file, whole_file
from minislice.command.cli import run_script
from minislice.command.output import print_result
from minislice.measuring import tables
from minislice.version import __version__

HELP = "write the report of a results file: Markdown, and a CSV beside it"
TITLE = "# Reproduction of SliceGPT's tables"
NOT_RUN = "not run"
TITLES = {
    1: "WikiText-2 perplexity, calibrated on 1024 x 2048 tokens of WikiText-2",
    2: "milliseconds a token, one sequence, 128 tokens generated",
    3: "minutes of slicing at 30% and of recovery fine-tuning, Alpaca",
    5: "WikiText-2 perplexity, calibrated on 128 x 2048 tokens of WikiText-2",
    7: "zero-shot accuracy in percent, calibrated on WikiText-2",
    8: "zero-shot accuracy in percent, calibrated on Alpaca",
    9: "zero-shot accuracy in percent, WikiText-2, after recovery fine-tuning",
    10: "zero-shot accuracy in percent, Alpaca, after recovery fine-tuning",
    11: "tokens a second, 128 tokens generated, the largest batch that fits",
    12: "milliseconds of each matrix product of one layer, 2048 tokens",
}
COLUMNS = (
    *("family", "profile", "table", "model", "slicing_percent", "row", "signal", "metric"),
    *("paper_value", "our_value", "difference", "spread_over_seeds", "standard_error", "seeds", "status"),
    "keys",  # of the records in the results file, where everything else stands
)
# Fields of a profile that decide no value, or are shown beside it.
SHOWN_ELSEWHERE = ("name", "seeds", "signals", "adapter", "tasks_from", "length", "rounds", "repeats")


@dataclass(frozen=True)
class Cell:
    """One number of a table, ours beside the paper's."""

    row: Row
    signal: str | None
    metric: str
    paper: float | None
    ours: float | None  # the mean over seeds
    difference: float | None  # ours minus the paper's
    spread: float | None  # standard deviation over seeds; None for fewer than two
    error: float | None  # standard error of an accuracy, of the first seed
    keys: list[str]  # of the records that have the number
    status: str  # "done", "2 of 3 seeds", "not run", "printed only"; and why
    slip: str  # what is wrong with the paper's value, in its own table


def cells(family: str, profile: Profile, records: list[dict]) -> list[Cell]:
    """Every cell of a family's tables; `records` are of this family and profile."""
    by_setting = {_without_dtype(Setting.from_json(record["setting"])): record for record in records}
    found = []
    for row in sorted(rows(family, profile), key=lambda row: row.table):
        for signal in row.signals or [None]:
            asked = [_without_dtype(setting) for setting in row.settings if setting.signal == signal]
            own = [by_setting[setting] for setting in asked if setting in by_setting]
            for metric in METRICS[row.table]:
                if metric in row.paper if profile.is_papers else _has(row, metric, own):
                    found.append(_cell(row, signal, metric, own, len(asked)))
    return found


def _cell(row: Row, signal: str | None, metric: str, records: list[dict], asked: int) -> Cell:
    name, paper = _name(row, metric), row.paper.get(metric)
    done = [record for record in records if name in record["values"]]
    values = [record["values"][name] for record in done]
    ours = statistics.fmean(values) if values else None
    status = "done" if len(done) == asked else f"{len(done)} of {asked} seeds" if done else NOT_RUN
    if reasons := [f"{record['status']}: {record['reason']}" for record in records if record["reason"]]:
        status += f" ({'; '.join(dict.fromkeys(reasons))})"
    return Cell(
        row,
        signal,
        metric,
        paper,
        ours,
        difference=None if paper is None or ours is None else ours - paper,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        error=done[0]["errors"].get(name) if done else None,
        keys=[record["key"] for record in done],
        status=status if asked else "printed only",
        slip=SLIPS.get((row.table, row.model, row.percent, metric), ""),
    )


def _name(row: Row, metric: str) -> str:
    """A metric's name in a record: a dense model's costs are measured beside the sliced one's."""
    return f"dense_{metric}" if row.dense else metric


def _without_dtype(setting: Setting) -> Setting:
    """The setting, whatever dtype "auto" stood for."""
    return dataclasses.replace(setting, dtype="auto")


def _has(row: Row, metric: str, records: list[dict]) -> bool:
    """Whether a stand-in's row, which has no printed values to go by, has such a column."""
    tasks = row.settings[0].tasks
    if (row.dense and metric.endswith("_ratio")) or (tasks and metric not in (*tasks, "average")):
        return False
    measured = [record["values"] for record in records if record["status"] == "done"]
    return not measured or any(_name(row, metric) in values for values in measured)


def write(results: str | os.PathLike, out: str | os.PathLike) -> dict[str, Path]:
    """Write OUT, Markdown, and beside it the same as CSV. Returns both paths.

    Raises:
        ValueError: there are no results; a file of these names isn't a report (see `folder.require_file`).
    """
    records = read(results)
    if not records:
        raise ValueError(f"{results} has no results to report; `reproduce.py ... --out {results}` writes them")
    out = Path(out)
    if out.suffix == ".csv":
        raise ValueError(f"{out}: the report is Markdown, such as report.md; the CSV is written beside it")
    beside = out.with_suffix(".csv")
    for path, begins in ((out, TITLE), (beside, ",".join(COLUMNS))):
        require_file(path, reads=[Path(results)], kind=("a report", begins))
    for path, text in {out: markdown(records), beside: as_csv(records)}.items():
        with whole_file(path) as new:
            new.write_text(text, encoding="utf-8")
    return {"report": out, "csv": beside}


def _runs(records: list[dict]) -> list[tuple[str, Profile, list[dict]]]:
    """The families and profiles in a file, each with its records."""
    found: dict[str, tuple[str, Profile, list[dict]]] = {}
    for record in records:
        profile = Profile.from_json(record["profile"])
        found.setdefault(repr((record["family"], profile)), (record["family"], profile, []))[2].append(record)
    return list(found.values())


def markdown(records: list[dict]) -> str:
    """The report as Markdown."""
    lines = [
        TITLE,
        "",
        f"By minislice {__version__}. In each cell stands what was measured here; behind it, as *paper*, what the "
        "paper prints (arXiv 2401.15024), and the difference. ± is the standard deviation over seeds or, of an "
        "accuracy, its standard error (the CSV has both). ! is a slip in print.",
    ]
    for family, profile, own in _runs(records):
        title = FAMILIES[family].title
        if profile.is_papers:
            lines += ["", f"## {title}", "", f"Not as in the paper: {_changed(profile) or 'nothing'}."]
        else:
            lines += ["", f"## {profile.stand_in}, in {title}'s place", ""]
            lines.append(f"A stand-in ({profile.name} profile): not the paper's models, and none of its values.")
        every = cells(family, profile, own)
        for table in dict.fromkeys(cell.row.table for cell in every):
            lines += ["", f"### {title_of(table, profile)}", ""]
            lines += _table(table_rows(table, every))
            slips = [cell for cell in every if cell.row.table == table and cell.slip]
            lines += ["", *(f"- {cell.row.model}, {cell.row.percent}%, {cell.metric}: {cell.slip}" for cell in slips)]
        lines += ["", "### How each was measured", "", *_table([how(record) for record in own])]
    return "\n".join(lines) + "\n"


def title_of(number: int, profile: Profile) -> str:
    """A table's title; a stand-in has the paper's rows, but other texts and sizes."""
    if profile.is_papers:
        return f"Table {number}: {TITLES[number]}"
    return f"On {profile.stand_in}, the rows of table {number} (in the paper: {TITLES[number]})"


def _changed(profile: Profile) -> str:
    """What decides a value and isn't as in the paper."""
    ours, papers = vars(profile), vars(PROFILES["paper"])
    return ", ".join(f"{n} {ours[n]!r}" for n in ours if n not in SHOWN_ELSEWHERE and ours[n] != papers[n])


def table_rows(number: int, every: list[Cell]) -> list[dict[str, str]]:
    """A table's rows as text by column; of `every` cell, those of this table."""
    every = [cell for cell in every if cell.row.table == number]
    metrics = [metric for metric in METRICS[number] if any(cell.metric == metric for cell in every)]
    lines: dict[tuple, dict[str, str]] = {}
    for cell in every:
        line = {
            "model": cell.row.model,
            "slicing": f"{cell.row.percent}%",
            "row": ", ".join(filter(None, (cell.row.label, cell.signal))),
            **dict.fromkeys(metrics, ""),
            "status": cell.status,
        }
        lines.setdefault((id(cell.row), cell.signal), line)[cell.metric] = _shown(cell)
    return list(lines.values())


def _shown(cell: Cell) -> str:
    paper = "" if cell.paper is None else f"*paper {_number(cell.paper)}{'!' if cell.slip else ''}*"
    if cell.ours is None:
        return f"{NOT_RUN if cell.row.settings else ''} {paper}".strip()
    around = cell.error if cell.error is not None else cell.spread
    ours = _number(cell.ours) + ("" if around is None else f" ± {_number(around)}")
    difference = "" if cell.difference is None else f"{cell.difference:+.2f}"
    return " ".join(filter(None, (ours, paper, difference)))


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(lines: list[dict[str, str]]) -> list[str]:
    """Markdown of rows that have the same columns."""
    rows = ([word.replace("|", "\\|") for word in line.values()] for line in lines)
    return tables.markdown(list(lines[0]), rows).split("\n")


def as_csv(records: list[dict]) -> str:
    """Every cell in a line of its own; `paper_value` is the paper's, `our_value` was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for family, profile, own in _runs(records):
        for cell in cells(family, profile, own):
            row = cell.row
            where = (family, profile.name, row.table, row.model, row.percent, row.label, cell.signal, cell.metric)
            numbers = (cell.paper, cell.ours, cell.difference, cell.spread, cell.error, len(cell.keys))
            writer.writerow([*where, *numbers, cell.status, " ".join(cell.keys)])
    return text.getvalue()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this script's own."""
    parser.add_argument("results", metavar="FILE", help="what `reproduce.py --out FILE` wrote, finished or not")
    parser.add_argument("--out", metavar="REPORT", required=True, help="such as report.md; the CSV is report.csv")


def run(arguments: argparse.Namespace) -> None:
    """Write both files."""
    written = write(arguments.results, arguments.out)
    print_result(arguments, {name: str(path) for name, path in written.items()})


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
