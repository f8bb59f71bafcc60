"""The command line's arguments: what can be asked for, and how `--help` explains it."""

import argparse
from collections.abc import Callable, Mapping

from . import __version__
from .adapters import FORMS
from .checkpoint import EMBEDDED
from .demo import SEQLEN
from .heads import HEADS
from .invariance import TOLERANCES
from .options import BASES, ORIENTATIONS
from .pca import SIGNALS
from .text import SOURCES

MODEL_HELP = f"one of the embedded models ({', '.join(EMBEDDED)}), a model's folder, or a name on the hub"
TEXT_HELP = (
    f"{', '.join(SOURCES)}, or a text, json, jsonl or parquet file (default: embedded for the embedded models, "
    "wikitext2 for others)"
)


def parser_for(run: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser; `run` has the function of each command, by the command's name."""
    parser = argparse.ArgumentParser(
        prog="minislice",
        description="SliceGPT: make a trained transformer smaller by deleting rows and columns of its weights.",
        epilog="Start with 'minislice demo'. 'minislice COMMAND --help' explains a command's options. 'torchrun "
        "--nproc-per-node N -m minislice slice ...' shares the calibration set among N processes, each on its own GPU.",
    )
    parser.add_argument("--version", action="version", version=f"minislice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help: str, *, model: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run[name])
        if model:
            sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
        sub.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
        sub.add_argument(
            "--device",
            help="such as cpu, cuda:1; for eval and generate also auto, all there are (default: cuda if there is one)",
        )
        dtypes = ["float32", "bfloat16", "float16", "float64"]
        sub.add_argument("--dtype", choices=dtypes, help="of weights and signal (default: float32 on a CPU)")
        sub.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
        return sub

    def calibration(sub: argparse.ArgumentParser, samples: int) -> None:
        sub.add_argument("--calibration", metavar="TEXT", help=f"calibration text: {TEXT_HELP}")
        sub.add_argument("--samples", type=_positive, help=f"calibration sequences (default: {samples})")

    def seqlen(sub: argparse.ArgumentParser) -> None:
        text = f"tokens a sequence (default: {SEQLEN} for the embedded models, else 2048, or the model's limit if less)"
        sub.add_argument("--seqlen", type=_positive, help=text)

    def evaluation(sub: argparse.ArgumentParser, note: str = "") -> None:
        sub.add_argument("--evaluation", metavar="TEXT", help=f"text to measure perplexity on: {TEXT_HELP}{note}")
        sub.add_argument("--eval-samples", type=_positive, help="measure on the first so many windows (default: all)")

    def out(sub: argparse.ArgumentParser, required: bool) -> None:
        sub.add_argument("--out", metavar="DIR", required=required, help="folder to save the model to")
        sub.add_argument("--force", action="store_true", help="replace DIR if it has files in it")

    sub = command("demo", "fuse, rotate and slice the three embedded models and show what changes", model=False)
    sub.add_argument("--samples", type=_positive, help="calibration and evaluation sequences (default: 16)")

    sub = command("verify", "measure whether a model has the invariance; exit status 1 if it has not")
    calibration(sub, 4)
    seqlen(sub)
    sub.add_argument("--dtypes", default=",".join(TOLERANCES), help="comma-separated (default: %(default)s)")

    sub = command("slice", "slice a model and measure what it costs; save it with --out")
    width = sub.add_mutually_exclusive_group()
    width.add_argument("--slicing", type=float, help="fraction of the width to delete (default: 0.25)")
    width.add_argument("--width", type=_positive, help="width to keep, taken as it is")
    width.add_argument("--discard", type=float, help="fraction of the variance to delete at each boundary")
    sub.add_argument("--multiple", type=_positive, help="round a fraction's width to a multiple of this (default: 8)")
    calibration(sub, 128)
    seqlen(sub)
    evaluation(sub, "; if it is the calibration file, its first half calibrates and its second is measured on")
    sub.add_argument("--signal", choices=SIGNALS, help="principal components of the norm's output or of its input")
    sub.add_argument("--slice-head", action="store_true", default=None, help="slice the last boundary too")
    sub.add_argument("--head", choices=HEADS, help="a tied head gets its own weights (default), or stays tied")
    sub.add_argument("--adapter", choices=FORMS, help="form of the residual adapters (default: low-rank)")
    sub.add_argument("--tolerance", type=float, help="low-rank: drop angles up to this cosine deficit (default: 0)")
    sub.add_argument("--basis", choices=BASES, help="what to keep; all but pca are baselines")
    sub.add_argument("--orientation", choices=ORIENTATIONS, help="of the basis inside the kept subspace")
    out(sub, required=False)
    sub.add_argument("--batch-size", type=_positive, default=8, help="sequences computed together (default: 8)")
    text = (
        "bring one layer at a time into memory, from MODEL's safetensors files; needs --out. Called again after an "
        "interruption, it goes on from the last finished layer. Measure the result with 'minislice eval DIR'"
    )
    sub.add_argument("--stream", action="store_true", help=text)

    sub = command("eval", "measure a model's perplexity and count its parameters")
    seqlen(sub)
    evaluation(sub)

    sub = command("generate", "continue a prompt")
    sub.add_argument("--prompt", required=True, help="text to continue")
    sub.add_argument("--max-new-tokens", type=_positive, default=64, help="(default: 64)")
    sub.add_argument("--do-sample", action="store_true", help="sample, instead of taking the likeliest token")

    sub = command("export", "write a sliced model as a stock architecture that needs no minislice")
    out(sub, required=True)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
