"""What a row of `compare` says, and rows as a table."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..measuring.paired import WindowLosses, perplexity_ratio

SCHEMA = 1
FIELDS: dict[str, type | tuple] = {  # of a row, and of what type
    "schema": int,
    "key": str,  # the same for what is the same: model, variant, size, both texts, tasks
    "status": str,  # "done" or "failed"
    "reason": (str, type(None)),  # of the latter
    "model": str,
    "variant": str,  # "dense", or a name in `VARIANTS`
    "size": float,  # asked for, of the dense parameters
    "parameters": (int, type(None)),  # these and what follows: None where it failed
    "dense_parameters": int,
    "perplexity": (float, type(None)),
    "ratio": (float, type(None)),  # to the dense perplexity
    "ratio_error": (float, type(None)),  # its paired standard error
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


def losses_of(row: dict[str, Any]) -> WindowLosses:
    """What a row says of each window; two rows' make a ratio (see `paired.perplexity_ratio`)."""
    return WindowLosses(torch.tensor(row["nll"], dtype=torch.float64), torch.tensor(row["predicted"]))


def faults(row: dict[str, Any]) -> list[str]:
    """What keeps a row from being one, in words; or an error, where a number or a list of numbers is something else."""
    found = [
        f"{name} is {row.get(name)!r}" for name, kind in FIELDS.items() if not isinstance(row.get(name, ...), kind)
    ]
    if found:
        return found
    if row["schema"] != SCHEMA:
        return [f"schema {row['schema']}, this minislice writes and reads {SCHEMA}"]
    if (row["status"] == "done") == (row["perplexity"] is None):
        return [f"{row['status']} with a perplexity of {row['perplexity']}"]
    table([row])
    if row["status"] == "done":
        losses = losses_of(row)
        if losses.nll.shape != losses.tokens.shape:
            return [f"losses of shape {tuple(losses.nll.shape)} for windows of shape {tuple(losses.tokens.shape)}"]
        perplexity = losses.perplexity * perplexity_ratio(losses, losses).ratio
        if not math.isclose(perplexity, row["perplexity"], rel_tol=1e-6):
            return [f"the windows' losses give a perplexity of {perplexity}, not {row['perplexity']}"]
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
    heads = ["variant", "size", "parameters", "of dense", "perplexity", "ratio to dense", "CPU seconds", *tasks]
    lines = ["| " + " | ".join(heads) + " |", "|---" * 2 + "|---:" * (len(heads) - 2) + "|"]
    for row in rows:
        cells = [row["variant"], f"{row['size']:.0%}"]
        if row["status"] == "done":
            cells += [
                f"{row['parameters']:,}",
                f"{row['parameters'] / row['dense_parameters']:.1%}",
                f"{row['perplexity']:.2f}",
                f"{row['ratio']:.3f} ± {row['ratio_error']:.3f}",
                f"{row['seconds']:.1f}",
                *(_accuracy(**row["tasks"][task]) if task in row["tasks"] else "-" for task in tasks),
            ]
        lines.append("| " + " | ".join(cells + ["-"] * (len(heads) - len(cells))) + " |")
    failed = [f"- {in_words(row)}" for row in rows if row["status"] == "failed"]
    return "\n".join(lines + (["", *failed] if failed else []))


def _accuracy(accuracy: float, stderr: float | None, **about) -> str:
    return f"{accuracy:.1f}" if stderr is None else f"{accuracy:.1f} ± {stderr:.1f}"
