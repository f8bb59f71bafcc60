"""What a row of `compare` says, and rows as a table."""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ..measuring.paired import WindowLosses
from ..measuring.tables import markdown

SCHEMA = 1
FIELDS = (  # of every row
    *("schema", "key"),  # the key is the same for what is the same: model, variant, size, texts, tasks
    *("status", "reason"),  # "done", or "failed" and why
    *("model", "variant", "size"),  # "dense", or a name in `VARIANTS`; the size asked for, of the dense parameters
    "dense_parameters",
    *("calibration", "evaluation"),  # sequences, their length in tokens, a checksum
    *("commit", "versions", "hardware", "when"),
)
MEASURED = {  # the other fields, as they are in a row that failed; in files, rows of earlier versions lack some
    "parameters": None,
    **{"perplexity": None, "ratio": None, "ratio_error": None},  # the ratio to the dense perplexity, its standard error
    **{"nll": [], "predicted": []},  # of each window: summed over its tokens, in nats; how many tokens
    "documents": [],  # the number of each window's document; empty: every window is one
    "second": None,  # of the second text: evaluation, perplexity, ratio, ratio_error, nll, predicted, documents
    "tasks": {},  # task: metric, accuracy and its standard error in percent, items; and their "mean"
    "seconds": None,  # of CPU time that making it smaller took
    "peak": None,  # bytes in use at most, with the model, while it was made smaller
    "widths": None,  # of a sliced model
}


def filled(row: dict[str, Any]) -> dict[str, Any]:
    """The row, and the fields of `MEASURED` that it lacks."""
    missing = {name: empty for name, empty in MEASURED.items() if name not in row}
    return row | copy.deepcopy(missing)


def losses_of(row: dict[str, Any]) -> WindowLosses:
    """What a row, or its "second", says of each window; two rows' make a ratio (see `paired.perplexity_ratio`)."""
    documents = torch.tensor(row["documents"]) if row["documents"] else None
    return WindowLosses(torch.tensor(row["nll"], dtype=torch.float64), torch.tensor(row["predicted"]), documents)


def faults(row: dict[str, Any]) -> list[str]:
    """What keeps a row of a file from being one, in words."""
    if missing := [name for name in FIELDS if name not in row]:
        return [f"it has no {', '.join(missing)}"]
    return [] if row["schema"] == SCHEMA else [f"schema {row['schema']}, where this minislice reads {SCHEMA}"]


def in_words(row: dict[str, Any]) -> str:
    """One line."""
    what = f"{row['variant']} {row['size']:.0%}"
    if row["status"] == "failed":
        return f"{what}: {row['reason']}"
    share = row["parameters"] / row["dense_parameters"]
    return f"{what}: perplexity {row['perplexity']:.2f}, {row['parameters']:,} parameters ({share:.1%})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each row, and the reasons of those that failed."""
    rows = [filled(row) for row in rows]
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    second = ["perplexity, second text", "ratio"] if any(row["second"] for row in rows) else []
    heads = ["variant", "size", "parameters", "of dense", "perplexity", "ratio to dense", *second]
    heads += ["CPU seconds", "peak", *tasks]
    lines = []
    for row in rows:
        cells = [row["variant"], f"{row['size']:.0%}"]
        if row["status"] == "done":
            cells += [f"{row['parameters']:,}", f"{row['parameters'] / row['dense_parameters']:.1%}", *_measured(row)]
            cells += _measured(row["second"]) if second else []
            peak = f"{row['peak'] / 2**30:.1f} GiB" if row["peak"] else "-"
            cells += [f"{row['seconds']:.1f}", peak, *(_accuracy(**row["tasks"].get(task, {})) for task in tasks)]
        lines.append(cells + ["-"] * (len(heads) - len(cells)))
    failed = [f"- {in_words(row)}" for row in rows if row["status"] == "failed"]
    return "\n".join([markdown(heads, lines, words=2), *([""] if failed else []), *failed])


def _measured(row: dict[str, Any] | None) -> list[str]:
    return [f"{row['perplexity']:.2f}", f"{row['ratio']:.3f} ± {row['ratio_error']:.3f}"] if row else ["-", "-"]


def _accuracy(accuracy: float | None = None, stderr: float | None = None, **about) -> str:
    if accuracy is None:
        return "-"
    return f"{accuracy:.1f}" if stderr is None else f"{accuracy:.1f} ± {stderr:.1f}"
