"""The paper's tables, row by row, into a results file that can be gone on with."""

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path

from preflight import Machine, overview
from protocol import FAMILIES, PROFILES, TABLES, profile_for, rows
from runner import dtype_on, reproduce

from minislice.adapters import FORMS
from minislice.command.cli import run_script
from minislice.command.inputs import files_read
from minislice.command.output import print_result
from minislice.command.parser import DTYPES, MODEL_HELP, positive
from minislice.measuring.records import require_results
from minislice.pca import SIGNALS

SHOWN = "model", "weights, GB", "signal, GB", "can run", "fetched", "why not"


HELP = "run the paper's tables again; finished rows are skipped"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    sub.add_argument("family", metavar="FAMILY", choices=FAMILIES, help=f"one of {', '.join(FAMILIES)}")
    numbers = ", ".join(map(str, TABLES))
    sub.add_argument("--tables", help=f"comma-separated, of {numbers} (default: all that the family is in)")
    sub.add_argument("--models", help="the paper's names or their ends, such as 7B,13B (default: all)")
    sub.add_argument("--out", metavar="FILE", required=True, help="results, one JSON record a line; it is appended to")
    text = "as the paper did, or in seconds on the embedded model of the family (default: paper)"
    sub.add_argument("--profile", choices=PROFILES, default="paper", help=text)
    sub.add_argument("--preflight", action="store_true", help="only say what can run on this machine")
    sub.add_argument("--rows", type=positive, metavar="N", help="stop behind so many measurements")
    sub.add_argument("--stream", action="store_true", help="slice from disk, one layer in memory; for 66B and 70B")
    text = "with --stream: torchrun processes that share the calibration set, each on a GPU of its own (default: 1)"
    sub.add_argument("--processes", dest="process_count", type=positive, default=1, help=text)
    sub.add_argument("--batch-size", type=positive, default=8, help="sequences a forward pass, fewer where needed")
    sub.add_argument("--device", help="that computes (default: cuda if there is one)")
    sub.add_argument("--dtype", choices=DTYPES, help="(default: float16 on a GPU, float32 on a CPU)")
    sub.add_argument("--seeds", type=positive, help="(default: 3 up to 13B, else 1)")
    sub.add_argument("--signals", help=f"comma-separated, of {', '.join(SIGNALS)} (default: both)")
    sub.add_argument("--adapter", choices=FORMS, help="(default: full, the paper's)")
    sub.add_argument("--tasks", help="of tables 7 to 10, comma-separated (default: the paper's five)")
    sub.add_argument("--tasks-from", metavar="DIR", help="local copies of them, TASK.jsonl")
    sub.add_argument("--limit", type=positive, help="items of each task (default: all)")
    sub.add_argument("--model", help=f"in place of the paper's models, without its values: {MODEL_HELP}")
    for name in ("wikitext2", "alpaca"):
        text = "a file in place of that text: its first half calibrates, its second is measured on"
        sub.add_argument(f"--{name}", metavar="FILE", help=text)
    sub.add_argument(
        "--samples", type=positive, help="calibration sequences for the paper's 1024; an eighth for its 128"
    )
    sub.add_argument("--seqlen", type=positive, help="tokens of a sequence (default: 2048)")
    sub.add_argument("--eval-samples", type=positive, help="windows to measure perplexity on (default: all)")
    sub.add_argument(
        "--recovery-samples", type=positive, help="sequences for the paper's 1000 of WikiText-2, 5000 of Alpaca"
    )
    sub.add_argument("--recovery-seqlen", type=positive, help="(default: 1024)")
    sub.add_argument("--recovery-steps", type=positive, help="(default: one pass over the sequences)")


def run(arguments: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("run reproduce without torchrun: with --stream --processes N it starts torchrun itself")
    if arguments.device == "auto":
        raise ValueError("give the device that computes, such as cuda:0; --stream spreads sliced models over all")
    if arguments.process_count > 1 and not arguments.stream:
        raise ValueError("--processes share a calibration set of a streamed slicing: give --stream as well")
    profile = profile_for(arguments.family, arguments.profile, **_changes(arguments))
    tables = [_table(word) for word in arguments.tables.split(",")] if arguments.tables else None
    chosen = rows(arguments.family, profile, tables, arguments.models.split(",") if arguments.models else None)
    require_results(arguments.out, files_read(arguments))
    if arguments.preflight:
        machine = Machine.here(arguments.device, Path(arguments.out).resolve().parent)
        lines = overview(chosen, machine, profile.dtype.replace("auto", dtype_on(arguments.device)), arguments.stream)
        text = "\n".join("; ".join(f"{name}: {line[name]}" for name in SHOWN if line[name]) for line in lines)
        print_result(arguments, {"models": lines}, text)
        return 0
    summary = reproduce(
        chosen,
        arguments.out,
        family=arguments.family,
        profile=profile,
        device=arguments.device,
        batch_size=arguments.batch_size,
        stream=arguments.stream,
        process_count=arguments.process_count,
        limit=arguments.rows,
        command=shlex.join(["python", "notebooks/reproduce/reproduce.py", *sys.argv[1:]]),
        say=(lambda line: None) if arguments.quiet or arguments.json else (lambda line: print(line, flush=True)),
    )
    print_result(arguments, {**dataclasses.asdict(summary), "results": arguments.out})
    return 0


def _table(word: str) -> int:
    if not word.strip().isdigit():
        raise ValueError(f"--tables takes numbers, comma-separated, got {word!r}")
    return int(word)


def _changes(arguments: argparse.Namespace) -> dict:
    """The fields of the profile that the command line changes."""
    same = ("dtype", "seeds", "adapter", "tasks_from", "limit", "model", "seqlen", "recovery_seqlen", "recovery_steps")
    changes = {name: getattr(arguments, name) for name in same}
    changes["windows"] = arguments.eval_samples
    changes["signals"] = tuple(arguments.signals.split(",")) if arguments.signals else None
    changes["tasks"] = tuple(arguments.tasks.split(",")) if arguments.tasks else None
    if bad := [signal for signal in changes["signals"] or () if signal not in SIGNALS]:
        raise ValueError(f"--signals takes {', '.join(SIGNALS)}, got {bad[0]!r}")
    if arguments.samples:
        changes["samples"] = {papers: max(1, papers * arguments.samples // 1024) for papers in (128, 1024, 2048)}
    if arguments.recovery_samples:
        changes["recovery_samples"] = {
            "wikitext2": arguments.recovery_samples,
            "alpaca": 5 * arguments.recovery_samples,
        }
    if arguments.wikitext2 or arguments.alpaca:
        texts = PROFILES[arguments.profile].texts
        given = {name: getattr(arguments, name) for name in texts}
        changes["texts"] = {name: (file, file) if (file := given[name]) else texts[name] for name in texts}
    return changes


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
