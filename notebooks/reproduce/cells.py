"""What is known of every cell of the tables: the paper's value, ours over the seeds, or why there is none."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from protocol import SLIPS, Profile, Row, Setting, rows

NOT_RUN = "not run"
METRICS = {  # the columns of a table, in the order in which it shows them
    **dict.fromkeys((1, 5), ("perplexity",)),
    **dict.fromkeys((7, 8, 9, 10), ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge", "average")),
    2: ("ms_per_token", "ms_per_token_ratio"),
    3: ("slicing_minutes", "rft_minutes"),
    11: ("tokens_per_second", "batch_size", "tokens_per_second_ratio"),
    12: ("down_proj", "up_or_gate_proj", "k_or_v", "q", "out", "total", "total_ratio"),
}


@dataclass(frozen=True)
class Cell:
    """One number of a table, ours beside the paper's."""

    row: Row
    signal: str | None
    metric: str
    paper: float | None
    ours: float | None  # the mean over seeds
    spread: float | None  # standard deviation over seeds, None for fewer than two
    error: float | None  # standard error of an accuracy, of the first seed
    records: list[dict] = field(default_factory=list)  # the finished ones
    status: str = NOT_RUN  # or "done", "2 of 3 seeds", "printed only"
    reason: str = ""

    @property
    def difference(self) -> float | None:
        return None if self.paper is None or self.ours is None else self.ours - self.paper

    @property
    def slip(self) -> str:
        return SLIPS.get((self.row.table, self.row.model, self.row.percent, self.metric), "")


def cells(family: str, profile: Profile, records: list[dict]) -> list[Cell]:
    """Every cell of a family's tables; `records` are of this family and profile."""
    by_setting = {_identity(record["setting"]): record for record in records}  # the last one counts
    found = []
    for row in sorted(rows(family, profile), key=lambda row: row.table):
        for signal in row.signals or [None]:
            settings = [setting for setting in row.settings if setting.signal == signal]
            own = [by_setting.get(_identity(_fields(setting))) for setting in settings]
            for metric in METRICS[row.table]:
                if metric in row.paper or (not profile.is_papers and _has(own, row, metric)):
                    found.append(_cell(row, signal, metric, own))
    return found


def _cell(row: Row, signal: str | None, metric: str, own: list[dict | None]) -> Cell:
    paper = row.paper.get(metric)
    if not row.settings:
        return Cell(row, signal, metric, paper, None, None, None, status="printed only")
    done = [record for record in own if record and record["status"] == "done"]
    other = [record for record in own if record and record["status"] != "done"]
    reason = "; ".join(dict.fromkeys(f"{record['status']}: {record['reason']}" for record in other))
    name = f"dense_{metric}" if row.dense else metric
    values = [record["values"][name] for record in done if name in record["values"]]
    if not values:
        return Cell(row, signal, metric, paper, None, None, None, status=NOT_RUN, reason=reason)
    status = "done" if len(done) == len(own) else f"{len(done)} of {len(own)} seeds"
    spread = statistics.stdev(values) if len(values) > 1 else None
    error = done[0]["errors"].get(name)
    return Cell(row, signal, metric, paper, statistics.fmean(values), spread, error, done, status, reason)


def _has(own: list[dict | None], row: Row, metric: str) -> bool:
    """Whether a stand-in's row has such a column: it has no printed ones to go by."""
    if row.dense and metric.endswith("_ratio"):
        return False
    tasks = row.settings[0].tasks
    if tasks is not None and metric not in (*tasks, "average"):
        return False
    name = f"dense_{metric}" if row.dense else metric
    measured = [record for record in own if record and record["status"] == "done"]
    return not measured or any(name in record["values"] for record in measured)


def _fields(setting: Setting) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(setting).items()}


def _identity(fields: dict[str, Any]) -> str:
    """A setting, whatever dtype "auto" stood for."""
    return repr(sorted((name, value) for name, value in fields.items() if name != "dtype"))
