"""The loop over the rows: finished ones are skipped, a failed one is recorded and the rest goes on.

It can be killed at any time; the same call goes on behind the last row that was finished.
"""

import contextlib
import dataclasses
import datetime
import gc
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import provenance
import torch
from bench import Bench, Outcome
from preflight import Machine, why_not
from protocol import GATES, Profile, Row, Setting, in_dtype, settings_of
from results import SCHEMA, key_of, opened

from minislice.corpus.batches import with_what_fits
from minislice.measuring.records import Records
from minislice.measuring.timing import peak_memory


class ProtocolDiffers(ValueError):
    """The dense model doesn't have the paper's value, so nothing that is sliced from it can be compared."""


@dataclass
class Summary:
    """What one call did: settings by what became of them."""

    done: int = 0
    finished_before: int = 0
    failed: int = 0
    skipped: int = 0
    left: int = 0  # beyond `limit`


def reproduce(
    rows: list[Row],
    out: str | os.PathLike,
    *,
    family: str,
    profile: Profile,
    device: str = "cpu",
    batch_size: int = 8,
    stream: bool = False,
    process_count: int = 1,
    limit: int | None = None,
    command: str = "runner.reproduce",
    say: Callable[[str], None] = print,
) -> Summary:
    """Measure what isn't in the file yet, and append it.

    Args:
        rows: of `protocol.rows`, for this family and profile.
        out: the results file, one JSON record a line.
        batch_size: sequences a forward pass; where a GPU's memory isn't enough, fewer.
        stream: slice from disk, one layer in memory, and measure on all devices together.
        process_count: with `stream`, processes that share the calibration set, each on a GPU of its own.
        limit: stop behind so many settings that weren't finished yet.
        command: recorded beside each result.
        say: is given a line for each setting.

    Raises:
        ProtocolDiffers: a dense model is not what the paper printed, within `protocol.GATES`. Its record stays.
        ValueError: another run writes into the file; the file holds something else.
    """
    out = Path(out)
    settings, summary = settings_of(rows, dtype_on(device)), Summary()
    about = {"family": family, "profile": dataclasses.asdict(profile), "command": command}
    with opened(out) as results, contextlib.ExitStack() as stack:
        bench = Bench(device, out.with_name(f".{out.name}.work"), stream, process_count)
        machine = Machine.here(device, out.resolve().parent)
        for index, setting in enumerate(settings, 1):
            record = _finished(results, setting)
            if record is None and limit is not None and summary.done + summary.failed >= limit:
                summary.left += 1
                continue
            if record is None:
                record = _run(bench, machine, setting, batch_size) | about
                results.append(record)
                _count(summary, record)
                say(f"[{index}/{len(settings)}] {_line(setting, record)}")
            else:
                summary.finished_before += 1
            check_gate(rows, setting, record)
        stack.callback(bench.forget)  # not after an error: what was sliced by streaming is there to go on with
    return summary


def check_gate(rows: list[Row], setting: Setting, record: dict) -> None:
    """A dense model must be what the paper printed, or tokenizer, data or protocol are not the paper's.

    Raises:
        ProtocolDiffers: it isn't.
    """
    if setting.percent or setting.limit is not None or setting.measure not in GATES or record["status"] != "done":
        return
    metric, tolerance = GATES[setting.measure]
    for row in rows:
        if setting in [in_dtype(own, setting.dtype) for own in row.settings] and metric in row.paper:
            ours, papers = record["values"][metric], row.paper[metric]
            if not abs(ours - papers) <= tolerance + 1e-9:  # a NaN is off, too
                raise ProtocolDiffers(
                    f"the dense {setting.model} has a {metric} of {ours:.2f}, and the paper (table {row.table}) "
                    f"{papers:.2f}: more than {tolerance} apart. Tokenizer or protocol differ, so that nothing sliced "
                    "from it could be compared; see that the tokenizer adds what it did in the paper, and that text, "
                    f"windows and versions are those of the record ({record['facts'].get('evaluation')})"
                )


def dtype_on(device: str) -> str:
    """What "auto" stands for: the paper's float16 on a GPU, float32 where a CPU computes."""
    return "float16" if torch.device(device).type == "cuda" else "float32"


def _finished(results: Records, setting: Setting) -> dict | None:
    """Its record, if the file has it."""
    try:
        return results.finished.get(key_of(setting, provenance.revision_of(setting), provenance.commit()))
    except ValueError:  # no such model: running it will say so
        return None


def _run(bench: Bench, machine: Machine, setting: Setting, batch_size: int) -> dict:
    """Measure one setting; its record, whatever happens."""
    outcome, status, reason, revision = Outcome(), "done", None, "unknown"
    began, tried = datetime.datetime.now(datetime.timezone.utc), []

    def attempt(size: int) -> Outcome:
        tried.append(size)
        try:
            return bench.measure(setting, size)
        except torch.OutOfMemoryError:
            bench.forget()  # a model that was being sliced is neither dense nor sliced
            raise

    if reason := why_not(setting, machine, bench.stream):
        status = "skipped"
    else:
        try:
            revision = provenance.revision_of(setting)
            with peak_memory(torch.device(bench.device)) as peak:
                outcome = with_what_fits(attempt, batch_size)
            outcome.facts["peak memory, bytes"] = peak.most
        except Exception as error:  # of any library, on any row: the others don't depend on it
            outcome, status = Outcome(), "failed"
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            bench.forget()
            gc.collect()
    outcome.facts["batch sizes"] = tried
    if bad := [name for name, value in outcome.values.items() if not math.isfinite(value)]:
        outcome.values, status, reason = {}, "failed", f"{', '.join(bad)} is no finite number"
    seconds = (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds()
    outcome.facts.setdefault("seconds", {})["all"] = round(seconds, 3)
    return {
        "schema": SCHEMA,
        "key": key_of(setting, revision, provenance.commit()),
        "status": status,
        "reason": reason,
        "setting": dataclasses.asdict(setting),
        "revision": revision,
        "commit": provenance.commit(),
        "values": outcome.values,
        "errors": {name: error for name, error in outcome.errors.items() if math.isfinite(error)},
        "facts": outcome.facts,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(bench.device),
        "when": began.isoformat(timespec="seconds"),
    }


def _count(summary: Summary, record: dict) -> None:
    setattr(summary, record["status"], getattr(summary, record["status"]) + 1)


def _line(setting: Setting, record: dict) -> str:
    what = f"{setting.model} " + (f"{setting.percent}%, seed {setting.seed}" if setting.percent else "dense")
    what += f", {setting.signal}" if setting.signal else ""
    what += ", recovered" if setting.recovery else ""
    if record["status"] != "done":
        return f"{what}: {setting.measure} {record['status']}: {record['reason']}"
    values = record["values"]
    headlines = ("perplexity", "average", "ms_per_token", "total", *values)
    shown = next(name for name in headlines if name in values)
    return f"{what}: {shown} {values[shown]:.2f}"
