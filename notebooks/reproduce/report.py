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

from protocol import FAMILIES, SLIPS, TABLES, Profile, Row, rows
from results import read, setting_of

from minislice.architecture.folder import require_file, whole_file
from minislice.command.cli import run_script
from minislice.command.output import print_result
from minislice.measuring import tables
from minislice.version import __version__

HELP = "write the report of a results file: Markdown, and a CSV beside it"
TITLE = "# Reproduction of SliceGPT's tables"
NOT_RUN, PRINTED = "not run", "printed only"


@dataclass(frozen=True)
class Cell:
    """One number of a table, ours beside the paper's: a line of the CSV."""

    profile: str
    table: int
    model: str
    slicing_percent: int
    row: str  # tells rows of one model and level apart
    signal: str | None
    metric: str
    paper_value: float | None
    our_value: float | None  # the mean over seeds
    difference: float | None  # ours minus the paper's
    spread_over_seeds: float | None  # standard deviation; None for fewer than two
    standard_error: float | None  # of an accuracy, of the first seed
    seeds: int
    status: str  # "done", "2 of 3 seeds", "not run", "printed only"; and why
    keys: str  # of the records in the results file, where everything else stands

    @property
    def slip(self) -> str:
        """What is wrong with the paper's value, in its own table."""
        return SLIPS.get((self.table, self.model, self.slicing_percent, self.metric), "")


COLUMNS = tuple(field.name for field in dataclasses.fields(Cell))


def cells(profile: Profile, records: list[dict]) -> list[Cell]:
    """Every cell of a family's tables, with what the records say of it, whatever profile they were made for.

    Of two records of one setting the later counts, but a failure doesn't hide an earlier result.
    """
    in_order = sorted(records, key=lambda record: record["status"] == "done")
    by_setting = {setting_of(record): record for record in in_order}
    every = []
    for row in sorted(rows(profile), key=lambda row: row.table):
        for signal in dict.fromkeys(setting.signal for setting in row.settings) or [None]:
            settings = [setting for setting in row.settings if setting.signal == signal]
            found = [by_setting[setting] for setting in settings if setting in by_setting]
            every += [_cell(profile.name, row, signal, metric, found, len(settings)) for metric in row.paper]
    return every


def _cell(profile: str, row: Row, signal: str | None, metric: str, records: list[dict], seeds: int) -> Cell:
    paper = row.paper[metric]
    name = f"dense_{metric}" if row.dense else metric  # a dense model's costs are measured beside the sliced one's
    done = [record for record in records if name in record["values"]]
    values = [record["values"][name] for record in done]
    ours = statistics.fmean(values) if values else None
    status = "done" if len(done) == seeds else f"{len(done)} of {seeds} seeds" if done else NOT_RUN
    if reasons := [f"{record['status']}: {record['reason']}" for record in records if record["reason"]]:
        status += f" ({'; '.join(dict.fromkeys(reasons))})"
    return Cell(
        *(profile, row.table, row.model, row.percent, row.label, signal, metric, paper, ours),
        difference=None if paper is None or ours is None else ours - paper,
        spread_over_seeds=statistics.stdev(values) if len(values) > 1 else None,
        standard_error=done[0]["errors"].get(name) if done else None,
        seeds=len(done),
        status=status if seeds else PRINTED,
        keys=" ".join(record["key"] for record in done),
    )


def write(results: str | os.PathLike, out: str | os.PathLike) -> dict[str, Path]:
    """Write OUT, Markdown, and beside it the same as CSV. Returns both paths."""
    records = read(results)
    if not records:
        raise ValueError(f"{results} has no results to report; `reproduce.py ... --out {results}` writes them")
    out = Path(out)
    beside = out.with_suffix(".csv")
    if out == beside:
        raise ValueError(f"{out}: the report is Markdown, such as report.md; the CSV is written beside it")
    texts = {out: (markdown(records), TITLE), beside: (as_csv(records), ",".join(COLUMNS))}
    for path, (_, begins) in texts.items():
        require_file(path, reads=[Path(results)], kind=("a report", begins))
    for path, (text, _) in texts.items():
        with whole_file(path) as new:
            new.write_text(text, encoding="utf-8")
    return {"report": out, "csv": beside}


def markdown(records: list[dict]) -> str:
    lines = [
        TITLE,
        f"By minislice {__version__}. In each cell stands what was measured here; after it, as *paper*, what the "
        "paper prints (arXiv 2401.15024), and the difference. ± is the standard deviation over seeds or, of an "
        "accuracy, its standard error (the CSV has both). ! is a slip in print.",
    ]
    for profile in profiles_of(records):
        title, every = FAMILIES[profile.family].title, cells(profile, records)
        if profile.is_papers:
            # Seeds and signals are seen in the rows.
            papers = Profile(profile.family, dtype="float16", seeds=profile.seeds, signals=profile.signals)
            changed = [f"{name} {value!r}" for name, value in vars(profile).items() if value != vars(papers)[name]]
            lines += [f"## {title}", f"Not as in the paper: {', '.join(changed) or 'nothing'}."]
        else:
            lines += [f"## {profile.stand_in}, in {title}'s place"]
            lines += [f"A stand-in ({profile.name} profile): not the paper's models, and none of its values."]
        for number in dict.fromkeys(cell.table for cell in every):
            lines += [f"### {title_of(number, profile)}", _table(table_rows(number, every))]
            slips = [cell for cell in every if cell.table == number and cell.slip]
            lines += [f"- {cell.model}, {cell.slicing_percent}%, {cell.metric}: {cell.slip}" for cell in slips]
    lines += ["## How each was measured", _table([how(record) for record in records])]
    return "\n\n".join(lines) + "\n"


def profiles_of(records: list[dict]) -> list[Profile]:
    return list(dict.fromkeys(Profile(**record["profile"]) for record in records))


def title_of(number: int, profile: Profile) -> str:
    """A table's title; a stand-in has the paper's rows, but other texts and sizes."""
    if profile.is_papers:
        return f"Table {number}: {TABLES[number].title}"
    return f"On {profile.stand_in}, the rows of table {number} (in the paper: {TABLES[number].title})"


def table_rows(number: int, every: list[Cell]) -> list[dict[str, str]]:
    """A table's rows as text by column; of `every` cell, those of this table."""
    every = [cell for cell in every if cell.table == number]
    metrics = [metric for metric in TABLES[number].metrics if any(cell.metric == metric for cell in every)]
    lines: dict[tuple, dict[str, str]] = {}
    for cell in every:
        line = {
            "model": cell.model,
            "slicing": f"{cell.slicing_percent}%",
            "row": ", ".join(filter(None, (cell.row, cell.signal))),
            **dict.fromkeys(metrics, ""),
            "status": cell.status,
        }
        lines.setdefault(tuple(line.values())[:3], line)[cell.metric] = _shown(cell)
    return list(lines.values())


def _shown(cell: Cell) -> str:
    paper = "" if cell.paper_value is None else f"*paper {_number(cell.paper_value)}{'!' if cell.slip else ''}*"
    if cell.our_value is None:
        return f"{'' if cell.status == PRINTED else NOT_RUN} {paper}".strip()
    around = cell.spread_over_seeds if cell.standard_error is None else cell.standard_error
    ours = _number(cell.our_value) + ("" if around is None else f" ± {_number(around)}")
    difference = "" if cell.difference is None else f"{cell.difference:+.2f}"
    return " ".join(filter(None, (ours, paper, difference)))


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def how(record: dict) -> dict[str, str]:
    """How a setting was measured, by column; the rest is in the results file, under the record's key."""
    facts, setting = record["facts"], setting_of(record)
    dense, sliced = facts.get("dense parameters"), facts.get("parameters")
    result = "" if record["status"] == "done" else f" **{record['status']}**: {record['reason']}"
    return {
        "key": record["key"],
        "what": f"{setting.measure} of {setting}, in {setting.how.dtype}, revision {record['revision']}{result}",
        "of parameters": f"{sliced / dense:.3f}" if sliced and dense else "-",
        **{name: facts.get(name, "-") for name in ("calibration", "evaluation")},
        "seconds": f"{facts['seconds']['all']:.0f}",
        "where": f"{record['hardware']}; minislice at {record['commit']}, torch {record['versions']['torch']}",
    }


def _table(lines: list[dict[str, str]]) -> str:
    return tables.markdown(list(lines[0]), ([word.replace("|", "\\|") for word in line.values()] for line in lines))


def as_csv(records: list[dict]) -> str:
    """A line for every cell; `paper_value` is the paper's, `our_value` was measured."""
    every = (cell for profile in profiles_of(records) for cell in cells(profile, records))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *map(dataclasses.astuple, every)])
    return text.getvalue()


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="FILE", help="what `reproduce.py --out FILE` wrote, finished or not")
    parser.add_argument("--out", metavar="REPORT", required=True, help="such as report.md; the CSV is report.csv")


def run(arguments: argparse.Namespace) -> None:
    written = write(arguments.results, arguments.out)
    print_result(arguments, {name: str(path) for name, path in written.items()})


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
