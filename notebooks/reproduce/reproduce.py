"""The paper's tables, row by row, into a results file that can be gone on with.

    python notebooks/reproduce/reproduce.py llama-2 --tables 1,5,7 --models 7B --out results.jsonl

Finished rows are skipped. A row that fails is recorded, and the others follow. The command can be killed at any time:
given again, it goes on after the last finished row.
"""

import argparse
import dataclasses
import datetime
import functools
import math
import os
import shlex
import shutil
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import results
import torch
from bench import Bench, Outcome
from protocol import FAMILIES, GATES, OF_SHAPES, PROFILES, TABLES, Profile, Row, Setting, profile_for, rows, settings_of

from minislice.architecture.modeling import without_memory
from minislice.command.cli import run_script
from minislice.command.inputs import files_read, given
from minislice.command.output import print_result
from minislice.command.parser import add_options, names, options_of, positive, several
from minislice.corpus.batches import with_what_fits
from minislice.measuring import provenance, records
from minislice.measuring.cost import parameters
from minislice.measuring.shapes import SHAPES
from minislice.measuring.timing import peak_memory

HELP = "run the paper's tables again; finished rows are skipped"
# The dense weights, and besides: an untied head, full adapters, one layer's products in float64, a batch's activations.
MARGIN = 1.3


# Preflight: what each model needs, what this machine has


def work_of(out: Path) -> Path:
    """The folder for what is sliced by streaming, beside the results file."""
    return out.with_name(f".{out.name}.work")


def space_here(device: str, out: Path) -> dict[str, int]:
    """Bytes that this machine has, by place; on a CPU the device's memory is the host's."""
    host, disk = psutil.virtual_memory().available, shutil.disk_usage(out.resolve().parent).free
    disk += sum(file.stat().st_size for file in work_of(out).rglob("*"))  # of slicings to go on with
    count = torch.cuda.device_count() if torch.device(device).type == "cuda" else 0
    devices = [torch.cuda.get_device_properties(index).total_memory for index in range(count)] or [host]
    one = devices[torch.device(device).index or 0]
    return {"the device": one, "all devices": sum(devices), "the host's memory": host, "the disk": disk}


def why_not(setting: Setting, space: dict[str, int], stream: bool) -> str | None:
    """The reason why a setting can't run here; None where it can, as far as can be told before."""
    weights, signal = needs(setting)
    wanted = [("measuring the model", weights, "all devices" if stream else "the device")]
    if setting.measure == "products":  # of three layers alone
        wanted = []
    elif setting.measure == "inference":
        wanted = [("timing the dense beside the sliced model", 2 * weights, "the device")]
    elif setting.percent and stream and setting.measure != "time":
        wanted += [("slicing from disk", weights + 3 * signal, "the disk")]
    elif setting.percent:
        wanted = [("slicing in memory", weights * MARGIN, "the device")]
        wanted += [("its signal", 3 * signal, "the host's memory")]  # of full width, and sliced before and after
    for what, size, place in wanted:
        if size > space[place]:
            return f"{what} takes about {size / 1e9:.0f} GB, and {place} has {space[place] / 1e9:.0f}"
    return None


def needs(setting: Setting) -> tuple[int, int]:
    """Bytes of a model's weights and of its calibration set's signal; zeros for a stand-in, which was chosen to fit."""
    shape = setting.model.lower()
    if shape not in SHAPES:
        return 0, 0
    item = getattr(torch, setting.how.dtype).itemsize
    tokens = setting.how.samples * setting.how.seqlen if setting.signal else 0
    return parameters_of(shape) * item, tokens * SHAPES[shape].hidden_size * item


@functools.cache
def parameters_of(shape: str) -> int:
    return parameters(without_memory(SHAPES[shape]))


def preflight(rows: list[Row], out: str | os.PathLike, device: str, stream: bool = False) -> list[dict[str, str]]:
    """A line for each model and measure: what it needs, how many of its settings can run here, why others can't."""
    space, lines, by_measure = space_here(device, Path(out)), [], defaultdict(list)
    for setting in settings_of(rows):
        by_measure[setting.model, setting.measure].append(setting)
    for (model, measure), settings in by_measure.items():
        reasons = [reason for setting in settings if (reason := why_not(setting, space, stream))]
        sizes = (max(size) / 1e9 for size in zip(*map(needs, settings), strict=True))
        weights, signal = (f"{size:.1f}" if size else "-" for size in sizes)
        try:
            fetched = "not needed" if measure in OF_SHAPES else results.revision(settings[0].source)[:12]
        except ValueError as error:
            fetched = f"no: {' '.join(str(error.__cause__ or error).split())[:160]}"
        line = {"model": model, "measure": measure, "weights, GB": weights, "signal, GB": signal}
        line |= {"can run": f"{len(settings) - len(reasons)} of {len(settings)}", "fetched": fetched}
        lines.append(line | {"why not": reasons[0] if reasons else ""})
    return lines


# The loop


def reproduce(
    rows: list[Row],
    out: str | os.PathLike,
    profile: Profile,
    *,
    device: str = "cpu",
    batch_size: int = 8,
    limit: int | None = None,
    quiet: bool = False,
    **streaming,
) -> dict[str, int]:
    """Measure what isn't in the file yet, append it, and print a line for each setting.

    Args:
        rows: of `protocol.rows`, for this profile.
        limit: stop after so many settings that weren't finished yet.
        streaming: the fields `stream` and `process_count` of `Bench`.

    Returns how many settings were "finished before", are now "done", have "failed", were "skipped" since they can't run
    here, or are "left" beyond the limit. A ValueError, where a dense model isn't the paper's, leaves its record.
    """
    out, settings = Path(out), settings_of(rows)
    count = Counter(dict.fromkeys(("finished before", "done", "failed", "skipped", "left"), 0))
    about = {"profile": dataclasses.asdict(profile), "command": shlex.join(sys.argv)}
    with records.opened(out, results.faults) as file:
        bench, space = Bench(device, work_of(out), **streaming), space_here(device, out)
        unfinished = Counter(setting.slicing for setting in settings)
        for index, setting in enumerate(settings, 1):
            revision = results.revision_of(setting)
            record = file.finished.get(results.key_of(setting, revision))
            if record:
                count["finished before"] += 1
            elif limit is not None and count["done"] + count["failed"] >= limit:
                count["left"] += 1
                continue
            else:
                record = measure(bench, space, setting, revision, batch_size) | about
                count[record["status"]] += 1
                if not quiet:  # before it is written, which a full disk may refuse
                    print(f"[{index}/{len(settings)}] {_line(setting, record)}", flush=True)
                file.append(record)
            check_gate(rows, setting, record)
            unfinished[setting.slicing] -= record["status"] == "done"
            if setting.text and not unfinished[setting.slicing]:
                bench.clear(setting.slicing)
    return dict(count)


def check_gate(rows: list[Row], setting: Setting, record: dict) -> None:
    """Raise a ValueError unless a dense model, measured as in the paper, is what the paper printed."""
    paper = setting.how.only("tasks", "tasks_from")
    if setting.percent or setting.how != paper or setting.measure not in GATES or record["status"] != "done":
        return
    metric, tolerance = GATES[setting.measure]
    ours = record["values"][metric]
    for row in rows:
        printed = row.paper.get(metric) if setting in row.settings else None
        if printed is not None and abs(ours - printed) > tolerance + 1e-9:
            raise ValueError(
                f"the dense {setting.model} has a {metric} of {ours:.2f}, and the paper (table {row.table}) "
                f"{printed:.2f}: more than {tolerance} apart. Tokenizer or protocol differ, so that nothing "
                f"sliced from it could be compared; record {record['key']} says by which versions and on which text"
            )


def measure(bench: Bench, space: dict[str, int], setting: Setting, revision: str, batch_size: int) -> dict:
    """The record of a setting, measured now if this machine can."""
    when, began = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    outcome, status, reason = Outcome(), "skipped", why_not(setting, space, bench.stream)
    if reason is None:
        try:
            with peak_memory(torch.device(bench.device)) as peak:
                most = 1 if setting.measure in ("inference", "products") else batch_size  # which have their own sizes
                outcome = with_what_fits(functools.partial(bench.measure, setting), most)
            outcome.facts["peak memory, bytes"] = peak.most
            if bad := [name for name, value in outcome.values.items() if not math.isfinite(value)]:
                raise ValueError(f"{', '.join(bad)} is no finite number")
            status = "done"
        except Exception as error:  # of any library, on any row: the others don't depend on it
            outcome, status = Outcome(), "failed"
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return {
        "schema": results.SCHEMA,
        "key": results.key_of(setting, revision),
        "status": status,
        "reason": reason,
        "setting": dataclasses.asdict(setting),
        "revision": revision,
        "commit": provenance.commit(),
        "values": outcome.values,
        "errors": {name: error for name, error in outcome.errors.items() if math.isfinite(error)},
        "facts": outcome.facts | {"seconds": outcome.seconds | {"all": round(time.perf_counter() - began, 3)}},
        "versions": provenance.versions(),
        "hardware": provenance.hardware(bench.device),
        "when": when.isoformat(timespec="seconds"),
    }


def _line(setting: Setting, record: dict) -> str:
    values = record["values"]
    if not values:
        return f"{setting}: {setting.measure} {record['status']}: {record['reason']}"
    shown = next(name for name in ("perplexity", "average", "ms_per_token", "total", *values) if name in values)
    return f"{setting}: {shown} {values[shown]:.2f}"


# The command


OPTIONS = {
    "--tables": (several(int), None, f"comma-separated, of {', '.join(map(str, TABLES))} (default: all with FAMILY)"),
    "--models": (names, None, "the paper's names or their ends, such as 7B,13B (default: all)"),
    "--profile": ([*PROFILES], "paper", "as the paper did, or in seconds on the embedded model of the family"),
    "--preflight": (bool, False, "only say what can run on this machine"),
    "--rows": (positive, None, "stop after so many measurements"),
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
    add_options(parser.add_argument_group("how it differs from the paper"), options_of(Profile))


def run(arguments: argparse.Namespace) -> None:
    if arguments.process_count > 1 and not arguments.stream:
        raise ValueError("--processes share a calibration set of a streamed slicing: give --stream as well")
    profile = profile_for(**given(arguments, Profile), name=arguments.profile, device=arguments.device)
    chosen = rows(profile, arguments.tables, arguments.models)
    records.require_results(arguments.out, files_read(arguments))
    if arguments.preflight:
        lines = preflight(chosen, arguments.out, arguments.device, arguments.stream)
        text = "\n".join("; ".join(f"{name}: {value}" for name, value in line.items() if value) for line in lines)
        print_result(arguments, {"models": lines}, text)
        return
    same = {name: getattr(arguments, name) for name in ("device", "batch_size", "stream", "process_count")}
    quiet = arguments.quiet or arguments.json
    count = reproduce(chosen, arguments.out, profile, limit=arguments.rows, quiet=quiet, **same)
    print_result(arguments, {**count, "results": arguments.out})


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
