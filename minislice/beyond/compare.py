"""The judge: ways to make a model smaller, at equal numbers of parameters, on one text or two.

Each variant (see `variants`) starts from a freshly loaded dense model and is calibrated on the calibration text alone.
On each evaluation text it gets a perplexity, the ratio to the dense model's with a paired standard error (see
`paired`), and, if tasks are given, zero-shot accuracy. Nothing is tuned on an evaluation text.
"""

import copy
import datetime
import gc
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architecture.network import network
from ..checks import is_several, require, require_int, require_number
from ..corpus.batches import token_batches
from ..corpus.documents import Windows
from ..measuring import provenance
from ..measuring.cost import parameters
from ..measuring.local_tasks import read_items
from ..measuring.paired import WindowLosses, perplexity_ratio, window_losses
from ..measuring.records import Records, opened
from ..measuring.tables import markdown
from ..measuring.timing import peak_memory
from ..measuring.zero_shot import ZeroShot, require_tasks, zero_shot
from .variants import VARIANTS, Variant

DENSE = "dense"
SIZES = (0.9, 0.8, 0.75, 0.7)
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


def compare(
    model: PreTrainedModel | Callable[[], PreTrainedModel],
    calibration: Int64[Tensor, "sequences tokens"],
    evaluation: Int64[Tensor, "windows length"] | Windows,
    *,
    second: Int64[Tensor, "windows length"] | Windows | None = None,
    variants: Mapping[str, Variant] = VARIANTS,
    sizes: Sequence[float] = SIZES,
    out: str | os.PathLike | None = None,
    name: str = "model",
    tasks: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks_from: str | os.PathLike | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure every variant at every size, beside the dense model.

        rows = minislice.compare(model, calibration, evaluation, sizes=[0.9, 0.8])
        print(beyond.compare.table(rows))

    Args:
        model: a function that loads the dense model; or the model, and every variant gets a copy.
        evaluation: windows from other text than the calibration set; their documents make the standard error honest.
        second: windows of another kind of text, to measure on as well.
        variants: functions by name; the docstring of `beyond.variants` says what each of them gets and returns.
        sizes: fractions of the dense model's parameters.
        out: a file with a row on each line. Its rows are not measured again, unless they failed.
        name: the model's, for the rows.
        tasks, tokenizer, tasks_from, limit: see `zero_shot`; without tasks no accuracy is measured.
        say: called with a line for each row.

    Returns the dense row, those asked for, and others in `out` of the same model, texts and tasks, each with the fields
    of `FIELDS` and `MEASURED`.
    """
    are_variants = isinstance(variants, Mapping) and len(variants) > 0 and all(map(callable, variants.values()))
    require(are_variants, "variants", "functions by the name of each variant, at least one", variants)
    require(is_several(sizes) and len(sizes) > 0, "sizes", "a list of shares of the parameters", sizes)
    for size in sizes:
        require_number("sizes", size, above=0, most=1)
    require_int("limit", 1 if limit is None else limit)
    tasks = require_tasks(tasks, tasks_from)
    if DENSE in variants:
        raise ValueError(f"{DENSE!r} is the dense model's row; give the variant another name")
    asked = {"tokenizer": tokenizer, "tasks": tasks, "tasks_from": tasks_from, "limit": limit}
    load = (lambda: copy.deepcopy(model)) if isinstance(model, PreTrainedModel) else model
    bench = Bench(load, calibration, [evaluation, *([] if second is None else [second])], asked if tasks else None)
    cells = [(DENSE, 1.0), *((variant, size) for variant in variants for size in sizes)]
    rows, known = [], {name: {} for name in (DENSE, *variants)}
    with nullcontext(Records()) if out is None else opened(out, faults) as records:
        finished = [(row["variant"], row["size"]) for row in records.finished.values()]
        cells = dict.fromkeys(cells + [cell for cell in finished if bench.key(*cell) in records.finished])
        for index, (variant, size) in enumerate(cells, 1):
            key = bench.key(variant, size)
            row = records.finished.get(key)
            if row is None:
                row = {"schema": SCHEMA, "key": key, "model": name, "variant": variant, "size": float(size)}
                act = variants.get(variant, lambda model, *given: model)  # the dense one stays as it is
                row |= bench.measure(act, size, known[variant], rows[0] if rows else None)
                records.append(row)
            rows.append(filled(row))
            say(f"[{index}/{len(cells)}] {in_words(row)}")
            if rows[0]["status"] == "failed":
                raise ValueError(f"the dense model can't be measured: {rows[0]['reason']}")
    return rows


class Bench:
    """What all rows share: the dense model, the texts, and the tasks."""

    def __init__(self, load: Callable[[], PreTrainedModel], calibration: Tensor, texts: Sequence, tasks: dict | None):
        self.load, self.calibration, self.tasks = load, calibration, tasks
        self.texts = [(text.ids, text.documents) if isinstance(text, Windows) else (text, None) for text in texts]
        for ids in (calibration, *(ids for ids, _ in self.texts)):
            fits = isinstance(ids, Tensor) and ids.ndim == 2
            require(fits, "calibration and evaluation", "tensors of ids, [sequences, tokens]", ids)
        folder = tasks and tasks["tasks_from"]
        self.items = None if folder is None else [read_items(task, Path(folder)) for task in tasks["tasks"]]
        dense = load()
        token_batches(dense, calibration, None, 1)  # which refuses what is no model, or another tokenizer's ids
        self.dense_parameters, self.fingerprint = parameters(dense), provenance.fingerprint(dense)
        self.hardware = provenance.hardware(str(dense.device))

    def key(self, variant: str, size: float) -> str:
        """Equal for two rows if they measure the same; minislice's commit doesn't count."""
        tasks = self.tasks and {**self.tasks, "tokenizer": None, "tasks_from": self.items}
        tensors = [self.calibration, *(tensor for text in self.texts for tensor in text if tensor is not None)]
        measured = [variant, float(size), self.fingerprint, [provenance.hash_of(ids) for ids in tensors], tasks]
        return hashlib.sha256(repr(measured).encode()).hexdigest()[:16]

    def measure(self, variant: Variant, size: float, known: dict, dense: dict | None) -> dict[str, Any]:
        """The row of one variant at one size, without its names; `dense` is the dense model's row."""
        row = filled({"status": "done", "reason": None, "dense_parameters": self.dense_parameters})
        row |= {"calibration": _described(self.calibration), "evaluation": _described(self.texts[0][0])}
        row |= {"commit": provenance.commit(), "versions": provenance.versions(), "hardware": self.hardware}
        row["when"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        try:
            row |= self._values(variant, size, known, dense)
        except Exception as error:  # whatever fails in one variant, the others are measured
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            row |= {"status": "failed", "reason": " ".join(f"{kind}{error}".split())[:500]}
        gc.collect()  # here the exception, which refers to the model, is gone
        return row

    def _values(self, variant: Variant, size: float, known: dict, dense: dict | None) -> dict[str, Any]:
        model = self.load()
        began = time.process_time()
        with peak_memory(model.device) as peak:
            model = variant(model, self.calibration, size, known)
        seconds = time.process_time() - began
        if (left := parameters(model)) > size * self.dense_parameters + 1e-6:
            raise ValueError(f"{left:,} parameters are left, more than {size:.1%} of {self.dense_parameters:,}")
        dense_rows = [dense, dense and dense["second"]]
        first, *others = [_perplexity(model, *text, row) for text, row in zip(self.texts, dense_rows, strict=False)]
        return {
            "parameters": left,
            **first,
            "second": others[0] if others else None,
            "tasks": {} if self.tasks is None else _accuracies(zero_shot(model, **self.tasks)),
            "seconds": round(seconds, 3),
            "peak": peak.most,
            "widths": network(model).widths if network(model).is_fused else None,
        }


def _perplexity(model: PreTrainedModel, ids: Tensor, documents: Tensor | None, dense: dict | None) -> dict[str, Any]:
    """What a row says of one text, with what the dense model's row says of it."""
    losses = window_losses(model, ids, documents=documents)
    if not math.isfinite(losses.perplexity):
        raise ValueError("the perplexity isn't a finite number")
    ratio = perplexity_ratio(losses, losses if dense is None else losses_of(dense))
    return {
        "perplexity": losses.perplexity,
        "ratio": ratio.ratio,
        "ratio_error": ratio.standard_error,
        "nll": losses.nll.tolist(),
        "predicted": losses.tokens.tolist(),
        "documents": [] if documents is None else losses.documents.tolist(),
        "evaluation": _described(ids),
    }


def _described(ids: Tensor) -> dict[str, Any]:
    return {"sequences": ids.shape[0], "length": ids.shape[1], "sha256": provenance.hash_of(ids)}


def _accuracies(found: ZeroShot) -> dict[str, dict[str, Any]]:
    def described(accuracy: float, stderr: float, **more) -> dict[str, Any]:
        return {"accuracy": accuracy, "stderr": None if math.isnan(stderr) else stderr, **more}

    tasks = {s.task: described(s.accuracy, s.stderr, metric=s.metric, items=s.count) for s in found.scores}
    return {**tasks, "mean": described(found.mean, found.stderr)}


def filled(row: dict[str, Any]) -> dict[str, Any]:
    """The row, and the fields of `MEASURED` that it lacks."""
    return row | {name: copy.copy(empty) for name, empty in MEASURED.items() if name not in row}


def losses_of(row: dict[str, Any]) -> WindowLosses:
    """What a row, or its "second", says of each window; two rows' make a ratio (see `paired.perplexity_ratio`)."""
    documents = torch.tensor(row["documents"]) if row["documents"] else None
    return WindowLosses(torch.tensor(row["nll"], dtype=torch.float64), torch.tensor(row["predicted"]), documents)


def faults(row: dict[str, Any]) -> list[str]:
    """What keeps a row of a file from being one, in words."""
    missing = [f"it has no {name}" for name in FIELDS if name not in row]
    return missing or [f"schema {row['schema']}, where this minislice reads {SCHEMA}"] * (row["schema"] != SCHEMA)


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
