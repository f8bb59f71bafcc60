"""The report of a results file: Markdown for people, CSV for machines; the paper's values are labelled as the paper's.

Every row of the family's tables is in it. What has no finished result says "not run", and why if that is known.
"""

import argparse
import csv
import dataclasses
import io
import math
import os
import sys
from pathlib import Path
from typing import Any

from cells import METRICS, NOT_RUN, Cell, cells
from protocol import FAMILIES, PROFILES, Profile, Setting
from results import read

from minislice.architecture.folder import require_file, whole_file
from minislice.command.cli import run_script
from minislice.command.output import print_result
from minislice.version import __version__

TITLE = "# Reproduction of SliceGPT's tables"
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


def write(results: str | os.PathLike, out: str | os.PathLike) -> dict[str, Path]:
    """Write OUT, Markdown, and beside it the same as CSV. Returns both paths.

    Raises:
        ValueError: there are no results; a file of these names isn't a report (see `folder.require_file`).
    """
    records = read(results, use=_use)
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


def _use(record: dict) -> None:
    """Raise some error for a record that somebody else wrote or edited."""
    Profile.from_json(record["profile"])
    Setting(**record["setting"])
    list(map(float, [*record["values"].values(), *record["errors"].values()]))
    _how([record], {})
    FAMILIES[record["family"]]


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
    machines: dict[tuple, str] = {}
    for family, profile, own in _runs(records):
        title = (
            FAMILIES[family].title if profile.is_papers else f"{profile.stand_in}, in {FAMILIES[family].title}'s place"
        )
        lines += ["", f"## {title}"]
        if not profile.is_papers:
            lines += [
                "",
                f"A stand-in ({profile.name} profile): these are not the paper's models, and none of its values.",
            ]
        every = cells(family, profile, own)
        for table in dict.fromkeys(cell.row.table for cell in every):
            lines += ["", f"### {title_of(table, profile)}", ""]
            lines += _table(table, [cell for cell in every if cell.row.table == table])
        lines += _how(own, machines)
    lines += ["", "## Where it was measured", ""]
    for (hardware, commit, versions), name in machines.items():
        lines.append(f"- {name}: {hardware}; minislice at {commit}; {versions}")
    return "\n".join(lines) + "\n"


def _changed(profile: Profile) -> str:
    """What decides a value and isn't as in the paper."""
    free = ("name", "seeds", "signals", "adapter", "tasks_from", "length", "rounds", "repeats")
    return ", ".join(
        f"{field.name} {getattr(profile, field.name)!r}"
        for field in dataclasses.fields(Profile)
        if field.name not in free and getattr(profile, field.name) != getattr(PROFILES["paper"], field.name)
    )


def title_of(number: int, profile: Profile) -> str:
    """A table's title; a stand-in has the paper's rows, but other texts and sizes."""
    if profile.is_papers:
        return f"Table {number}: {TITLES[number]}"
    return f"On {profile.stand_in}, the rows of table {number} (in the paper: {TITLES[number]})"


def table_rows(number: int, every: list[Cell]) -> list[dict[str, str]]:
    """A table's rows as text by column; `every` are the cells of this table."""
    metrics = [metric for metric in METRICS[number] if any(cell.metric == metric for cell in every)]
    found = []
    for place in dict.fromkeys((id(cell.row), cell.signal) for cell in every):
        own = {cell.metric: cell for cell in every if (id(cell.row), cell.signal) == place}
        first = next(iter(own.values()))
        found.append(
            {
                "model": first.row.model,
                "slicing": f"{first.row.percent}%",
                "row": ", ".join(filter(None, (first.row.label, first.signal))),
                **{metric: _shown(own[metric]) if metric in own else "" for metric in metrics},
                "status": first.status + (f" ({first.reason})" if first.reason else ""),
            }
        )
    return found


def _table(number: int, every: list[Cell]) -> list[str]:
    found = table_rows(number, every)
    lines = [_line(list(found[0])), "|---" * len(found[0]) + "|", *(_line(list(row.values())) for row in found)]
    slips = [f"- {cell.row.model}, {cell.row.percent}%, {cell.metric}: {cell.slip}" for cell in every if cell.slip]
    return [*lines, *(["", *slips] if slips else [])]


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


def _how(records: list[dict], machines: dict[tuple, str]) -> list[str]:
    """How each setting was measured."""
    lines = ["", "### How each was measured", ""]
    columns = "model revision", "slicing", "of parameters", "calibration", "evaluation", "dtype", "seed", "seconds"
    lines += [f"| {' | '.join(columns)} | peak memory | where | command |", "|---" * 11 + "|"]
    for record in records:
        row = _provenance(record)
        where = machines.setdefault(
            (record["hardware"], record["commit"], row["versions"]), f"machine {len(machines) + 1}"
        )
        peak = f"{row['peak_memory_bytes'] / 1e9:.2f} GB" if row["peak_memory_bytes"] else "-"
        result = "" if record["status"] == "done" else f" **{record['status']}**: {record['reason']}"
        words = [
            f"{record['setting']['model']} {record['revision']}, {record['setting']['measure']}{result}",
            f"{record['setting']['percent']}%",
            "-" if row["parameter_ratio"] is None else f"{row['parameter_ratio']:.3f}",
            *(row[name] or "-" for name in ("calibration", "evaluation")),
            record["setting"]["dtype"],
            str(record["setting"]["seed"]),
            f"{row['seconds']:.0f}",
            peak,
            where,
            f"`{record['command']}`",
        ]
        lines.append(_line(words))
    return lines


def _line(words: list[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def _provenance(record: dict) -> dict[str, Any]:
    """What a report says of a record besides its values."""
    facts, setting = record["facts"], record["setting"]
    dense, own = facts.get("dense parameters"), facts.get("parameters")
    evaluation = _tokens(facts.get("evaluation"))
    if "metrics" in facts:
        evaluation = "; ".join(f"{task} {metric}" for task, metric in facts["metrics"].items())
    return {
        "revision": record["revision"],
        "commit": record["commit"],
        "calibration": _tokens(facts.get("calibration")),
        "recovery": _tokens(facts.get("recovery")),
        "evaluation": evaluation,
        "dtype": setting["dtype"],
        "adapter": setting["adapter"],
        "parameter_ratio": own / dense if own and dense else None,
        "seconds": facts["seconds"]["all"],
        "peak_memory_bytes": facts.get("peak memory, bytes"),
        "hardware": record["hardware"],
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "command": record["command"],
        "when": record["when"],
    }


def _tokens(described: dict | None) -> str:
    if described is None:
        return ""
    return f"{described['text']} {described['sequences']} x {described['seqlen']} ({described['tokens']})"


CELL_COLUMNS = (
    *("family", "profile", "table", "model", "slicing_percent", "row", "signal", "metric"),
    *(
        "paper_value",
        "our_value",
        "spread_over_seeds",
        "standard_error",
        "seeds",
        "difference",
        "status",
        "reason",
        "note",
    ),
)
PROVENANCE_COLUMNS = (
    *("revision", "commit", "calibration", "recovery", "evaluation", "dtype", "adapter", "parameter_ratio", "seconds"),
    *("peak_memory_bytes", "hardware", "versions", "command", "when"),
)
COLUMNS = (*CELL_COLUMNS, *PROVENANCE_COLUMNS)


def as_csv(records: list[dict]) -> str:
    """Every cell in a line of its own; `paper_value` is the paper's, `our_value` was measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for family, profile, own in _runs(records):
        for cell in cells(family, profile, own):
            line = {
                "family": family,
                "profile": profile.name,
                "table": cell.row.table,
                "model": cell.row.model,
                "slicing_percent": cell.row.percent,
                "row": cell.row.label,
                "signal": cell.signal,
                "metric": cell.metric,
                "paper_value": cell.paper,
                "our_value": cell.ours,
                "spread_over_seeds": cell.spread,
                "standard_error": cell.error,
                "seeds": len(cell.records),
                "difference": cell.difference,
                "status": cell.status,
                "reason": cell.reason,
                "note": cell.slip,
            }
            if cell.records:
                line |= _merged([_provenance(record) for record in cell.records])
            writer.writerow({name: "" if value is None else value for name, value in line.items()})
    return text.getvalue()


def _merged(several: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several seeds: seconds in all, memory at most, and each different word once."""
    merged = {}
    for name in PROVENANCE_COLUMNS:
        values = [one[name] for one in several if one[name] not in (None, "")]
        if name == "seconds":
            merged[name] = math.fsum(values)
        elif name == "peak_memory_bytes":
            merged[name] = max(values, default=None)
        else:
            merged[name] = "; ".join(dict.fromkeys(map(str, values)))
    return merged


HELP = "write the report of a results file: Markdown, and a CSV beside it"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="FILE", help="what `reproduce.py --out FILE` wrote, finished or not")
    parser.add_argument("--out", metavar="REPORT", required=True, help="such as report.md; the CSV is report.csv")


def run(arguments: argparse.Namespace) -> int:
    written = write(arguments.results, arguments.out)
    print_result(arguments, {name: str(path) for name, path in written.items()})
    return 0


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
