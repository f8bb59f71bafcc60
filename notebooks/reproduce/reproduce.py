"""The paper's tables, row by row, into a results file that can be gone on with.

    python notebooks/reproduce/reproduce.py llama-2 --tables 1,5,7 --models 7B --out results.jsonl

Finished rows are skipped, a failed one is recorded and the rest goes on. It can be killed at any time; the same command
goes on behind the last row that was finished.
"""

import argparse
import dataclasses
import datetime
import gc
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import results
import torch
from bench import Bench, Outcome
from preflight import Machine, overview, why_not
from protocol import FAMILIES, GATES, PROFILES, TABLES, Profile, Row, Setting, profile_for, rows, settings_of

from minislice.command.cli import run_script
from minislice.command.inputs import files_read, given
from minislice.command.output import print_result
from minislice.command.parser import add_options, names, positive, several
from minislice.command.parser import given as word
from minislice.corpus.batches import with_what_fits
from minislice.measuring import provenance
from minislice.measuring.records import Records, require_results
from minislice.measuring.timing import peak_memory

HELP = "run the paper's tables again; finished rows are skipped"


class ProtocolDiffers(ValueError):
    """The dense model doesn't have the paper's value."""


def reproduce(
    rows: list[Row],
    out: str | os.PathLike,
    profile: Profile,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    stream: bool = False,
    process_count: int = 1,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Measure what isn't in the file yet, and append it.

    Args:
        rows: of `protocol.rows`, for this profile.
        stream: slice from disk, one layer in memory, and measure on all devices together.
        process_count: with `stream`, processes that share the calibration set, each on a GPU of its own.
        limit: stop behind so many settings that weren't finished yet.
        say: is given a line for each setting.

    Returns how many settings were "finished before", are now "done", have "failed", were "skipped" since they can't run
    here, or are "left" beyond the limit.

    Raises:
        ProtocolDiffers: a dense model is not what the paper printed, within `protocol.GATES`. Its record stays.
    """
    out, settings = Path(out), settings_of(rows)
    count = Counter(dict.fromkeys(("finished before", "done", "failed", "skipped", "left"), 0))
    about = {"profile": dataclasses.asdict(profile), "command": shlex.join(sys.argv)}
    with results.opened(out) as file:
        bench = Bench(device, out.with_name(f".{out.name}.work"), stream, process_count)
        machine = Machine.here(device, out.resolve().parent)
        for index, setting in enumerate(settings, 1):
            record = finished(file, setting)
            if record:
                count["finished before"] += 1
            elif limit is not None and count["done"] + count["failed"] >= limit:
                count["left"] += 1
                continue
            else:
                record = measure(bench, machine, setting, batch_size) | about
                file.append(record)
                count[record["status"]] += 1
                say(f"[{index}/{len(settings)}] {_line(setting, record)}")
            check_gate(rows, setting, record)
        bench.forget()  # not after an error: what was sliced by streaming is there to go on with
    return dict(count)


def finished(file: Records, setting: Setting) -> dict | None:
    """The record of a setting that needn't be measured again."""
    try:
        return file.finished.get(results.key_of(setting, results.revision_of(setting), provenance.commit()))
    except ValueError:  # no such model: running it will say so
        return None


def check_gate(rows: list[Row], setting: Setting, record: dict) -> None:
    """Raise ProtocolDiffers unless a dense model, measured as in the paper, is what the paper printed."""
    how = setting.how
    paper = Profile(how.family, dtype=how.dtype, tasks=how.tasks, tasks_from=how.tasks_from)
    if setting.percent or how != paper or setting.measure not in GATES or record["status"] != "done":
        return
    metric, tolerance = GATES[setting.measure]
    ours = record["values"][metric]
    for row in rows:
        if setting in row.settings and abs(ours - row.paper.get(metric, ours)) > tolerance + 1e-9:
            raise ProtocolDiffers(
                f"the dense {setting.model} has a {metric} of {ours:.2f}, and the paper (table {row.table}) "
                f"{row.paper[metric]:.2f}: more than {tolerance} apart. Tokenizer or protocol differ, so that nothing "
                f"sliced from it could be compared; look at the record's versions and text ({record['facts']})"
            )


def measure(bench: Bench, machine: Machine, setting: Setting, batch_size: int) -> dict:
    outcome, reason, revision = Outcome(), why_not(setting, machine, bench.stream), "unknown"
    status = "skipped" if reason else "done"
    when, began, tried = datetime.datetime.now(datetime.timezone.utc), time.perf_counter(), []

    def attempt(size: int) -> Outcome:
        tried.append(size)
        try:
            return bench.measure(setting, size)
        except torch.OutOfMemoryError:
            if bench.last is None:  # else the model is whole, and isn't sliced again
                bench.forget()
            raise

    if not reason:
        try:
            revision = results.revision_of(setting)
            with peak_memory(torch.device(bench.device)) as peak:
                outcome = with_what_fits(attempt, batch_size)
            outcome.facts["peak memory, bytes"] = peak.most
            if bad := [name for name, value in outcome.values.items() if not math.isfinite(value)]:
                raise ValueError(f"{', '.join(bad)} is no finite number")
        except Exception as error:  # of any library, on any row: the others don't depend on it
            outcome, status = Outcome(), "failed"
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            bench.forget()
            gc.collect()
    outcome.facts["batch sizes"] = tried
    outcome.facts.setdefault("seconds", {})["all"] = round(time.perf_counter() - began, 3)
    return {
        "schema": results.SCHEMA,
        "key": results.key_of(setting, revision, provenance.commit()),
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
        "when": when.isoformat(timespec="seconds"),
    }


def _line(setting: Setting, record: dict) -> str:
    level = f"{setting.percent}%, seed {setting.seed}" if setting.percent else "dense"
    what = ", ".join(filter(None, (level, setting.signal, setting.recovered and "recovered")))
    if record["status"] != "done":
        return f"{setting.model} {what}: {setting.measure} {record['status']}: {record['reason']}"
    values = record["values"]
    shown = next(name for name in ("perplexity", "average", "ms_per_token", "total", *values) if name in values)
    return f"{setting.model} {what}: {shown} {values[shown]:.2f}"


OPTIONS = {
    "--tables": (several(int), None, f"comma-separated, of {', '.join(map(str, TABLES))} (default: all with FAMILY)"),
    "--models": (names, None, "the paper's names or their ends, such as 7B,13B (default: all)"),
    "--profile": ([*PROFILES], "paper", "as the paper did, or in seconds on the embedded model of the family"),
    "--preflight": (bool, False, "only say what can run on this machine"),
    "--rows": (positive, None, "stop behind so many measurements"),
    "--stream": (bool, False, "slice from disk, one layer in memory; for 66B and 70B"),
    "--batch-size": (positive, 8, "sequences a forward pass, fewer where needed"),
    "--device": (str, None, "that computes (default: cuda if there is one)"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("family", metavar="FAMILY", choices=FAMILIES, help=f"one of {', '.join(FAMILIES)}")
    parser.add_argument("--out", metavar="FILE", required=True, help="results, one JSON record a line; appended to")
    text = "with --stream: torchrun's, that share the calibration set, each on a GPU of its own (default: 1)"
    parser.add_argument("--processes", dest="process_count", type=positive, default=1, help=text)
    add_options(parser, OPTIONS)
    changes = {}
    for field in dataclasses.fields(Profile):
        if text := field.metadata.get("help"):
            note = "" if field.default is None else f" (default: {field.default})"
            kind = positive if "int" in str(field.type) else word
            changes["--" + field.name.replace("_", "-")] = (kind, None, text + note)
    add_options(parser.add_argument_group("how it differs from the paper"), changes)


def run(arguments: argparse.Namespace) -> None:
    if arguments.device == "auto":
        raise ValueError("give the device that computes, such as cuda:0; --stream spreads sliced models over all")
    if arguments.process_count > 1 and not arguments.stream:
        raise ValueError("--processes share a calibration set of a streamed slicing: give --stream as well")
    profile = profile_for(**given(arguments, Profile), name=arguments.profile, device=arguments.device)
    chosen = rows(profile, arguments.tables, arguments.models)
    require_results(arguments.out, files_read(arguments))
    if arguments.preflight:
        machine = Machine.here(arguments.device, Path(arguments.out).resolve().parent)
        lines = overview(chosen, machine, arguments.stream)
        text = "\n".join("; ".join(f"{name}: {value}" for name, value in line.items() if value) for line in lines)
        print_result(arguments, {"models": lines}, text)
        return
    same = ("device", "batch_size", "stream", "process_count")
    count = reproduce(
        chosen,
        arguments.out,
        profile,
        **{name: getattr(arguments, name) for name in same},
        limit=arguments.rows,
        say=(lambda line: None) if arguments.quiet or arguments.json else (lambda line: print(line, flush=True)),
    )
    print_result(arguments, {**count, "results": arguments.out})


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
