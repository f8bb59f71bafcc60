"""What a row of `compare` says, and rows as a table."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..measuring.paired import WindowLosses
from ..measuring.tables import markdown

SCHEMA = 1
FIELDS: dict[str, type | tuple] = {  # of a row, and of what type
    "schema": int,
    "key": str,  # the same for what is the same: model, variant, size, texts, tasks
    "status": str,  # "done" or "failed"
    "reason": (str, type(None)),  # of a failure
    "model": str,
    "variant": str,  # "dense", or a name in `VARIANTS`
    "size": float,  # asked for, of the dense parameters
    "parameters": (int, type(None)),  # these and what follows: None where it failed
    "dense_parameters": int,
    "perplexity": (float, type(None)),
    "ratio": (float, type(None)),  # to the dense perplexity
    "ratio_error": (float, type(None)),  # its paired standard error, clustered by document
    "nll": list,  # of each window, summed over its tokens, in nats; and how many tokens: any two rows can be paired
    "predicted": list,
    "tasks": dict,  # task: metric, accuracy and its standard error in percent, items; and their "mean"
    "seconds": (float, type(None)),  # of CPU time that making it smaller took
    "widths": (list, type(None)),  # of a sliced model
    "calibration": dict,  # sequences, their length in tokens, a checksum
    "evaluation": dict,
    "commit": str,
    "versions": dict,
    "hardware": str,
    "when": str,
}
LATER = {  # fields that rows of earlier versions don't have
    "documents": list,  # the number of each window's document; empty: every window is one
    "peak": (int, type(None)),  # bytes in use at most, with the model, while it was made smaller
    "second": (dict, type(None)),  # of the second text: evaluation, perplexity, ratio, ratio_error, nll, ...
}


def losses_of(row: dict[str, Any]) -> WindowLosses:
    """What a row, or its "second", says of each window; two rows' make a ratio (see `paired.perplexity_ratio`)."""
    documents = torch.tensor(row["documents"]) if row.get("documents") else None
    return WindowLosses(torch.tensor(row["nll"], dtype=torch.float64), torch.tensor(row["predicted"]), documents)


def faults(row: dict[str, Any]) -> list[str]:
    """What keeps a row from being one, in words; or an error, where a number or a list of numbers is something else."""
    kinds = FIELDS | {name: kind for name, kind in LATER.items() if name in row}
    found = [f"{name} is {row.get(name)!r}" for name, kind in kinds.items() if not isinstance(row.get(name, ...), kind)]
    if found:
        return found
    if row["schema"] != SCHEMA:
        return [f"schema {row['schema']}, this minislice writes and reads {SCHEMA}"]
    table([row])
    for measured in [row, *filter(None, [row.get("second")])] if row["status"] == "done" else ():
        perplexity = losses_of(measured).perplexity
        if not math.isclose(perplexity, measured["perplexity"], rel_tol=1e-6):
            return [f"the windows' losses give a perplexity of {perplexity}, not {measured['perplexity']}"]
    return []


def in_words(row: dict[str, Any]) -> str:
    """One line."""
    what = f"{row['variant']} {row['size']:.0%}"
    if row["status"] == "failed":
        return f"{what}: {row['reason']}"
    share = row["parameters"] / row["dense_parameters"]
    return f"{what}: perplexity {row['perplexity']:.2f}, {row['parameters']:,} parameters ({share:.1%})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each row, and the reasons of those that failed."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    second = ["perplexity, second text", "ratio"] if any(row.get("second") for row in rows) else []
    heads = ["variant", "size", "parameters", "of dense", "perplexity", "ratio to dense", *second]
    heads += ["CPU seconds", "peak", *tasks]
    lines = []
    for row in rows:
        cells = [row["variant"], f"{row['size']:.0%}"]
        if row["status"] == "done":
            cells += [f"{row['parameters']:,}", f"{row['parameters'] / row['dense_parameters']:.1%}", *_measured(row)]
            cells += _measured(row.get("second")) if second else []
            peak = f"{row['peak'] / 2**30:.1f} GiB" if row.get("peak") else "-"
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
