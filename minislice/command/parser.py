"""The parser of the command line, and the arguments that several commands share.

A command is a module with `HELP`, `arguments(sub)`, which adds its own to a parser, and `run(arguments)`, which returns
the exit status.
"""

import argparse
from collections.abc import Mapping
from types import ModuleType

from ..corpus.embedded import EMBEDDED, SEQLEN
from ..corpus.text import SOURCES
from ..version import __version__

MODEL_HELP = (
    f"one of the embedded models ({', '.join(EMBEDDED)}), smollm2, a model's folder, a GGUF file, or a name on the hub"
)
TEXTS = f"{', '.join(SOURCES)}, or a text, json, jsonl or parquet file"
BY_DEFAULT = "(default: embedded for the embedded models, wikitext2 for others)"
TEXT_HELP = f"{TEXTS} {BY_DEFAULT}"
OWN = "own"  # in place of a text: what the model writes itself
HEAD_HELP = (
    "a head that was tied to the embedding stays tied (default where both ends are whole), gets weights of its own, or "
    "is fitted to the sliced embedding"
)
DTYPES = ["float32", "bfloat16", "float16", "float64"]


def parser_for(commands: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    """The parser of these commands, by their names."""
    parser = argparse.ArgumentParser(
        prog="minislice",
        description="SliceGPT: make a trained transformer smaller by deleting rows and columns of its weights.",
        epilog="Start with 'minislice demo'. 'minislice COMMAND --help' explains a command's options. "
        "'torchrun --nproc-per-node N -m -- minislice slice ...' shares the calibration set among N processes, each on "
        "a GPU of its own.",
    )
    parser.add_argument("--version", action="version", version=f"minislice {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in commands.items():
        sub = subparsers.add_parser(name, help=command.HELP, description=in_full(command.HELP))
        add_command(sub, command)
    return parser


def in_full(help: str) -> str:
    """A sentence, where `--help` of all commands has it in short."""
    return help[0].upper() + help[1:] + "."


def add_command(sub: argparse.ArgumentParser, command: ModuleType) -> None:
    """Give a parser what a command takes."""
    sub.set_defaults(run=command.run)
    command.arguments(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    sub.add_argument("--quiet", action="store_true", help="no progress bars")


def add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", type=given, help=MODEL_HELP)
    add_trust(sub)


def add_trust(sub: argparse.ArgumentParser) -> None:
    text = "run the Python files that come with MODEL, if it has an architecture of its own"
    sub.add_argument("--trust-remote-code", action="store_true", help=text)


def add_machine(sub: argparse.ArgumentParser) -> None:
    """What a command that computes with a model is told of seed, device and dtype."""
    sub.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    sub.add_argument(
        "--device",
        help="such as cpu, cuda:1; for eval and generate also auto, all there are (default: cuda if there is one)",
    )
    sub.add_argument("--dtype", choices=DTYPES, help="of weights and signal (default: float32 on a CPU)")


def add_calibration(sub: argparse.ArgumentParser, samples: int, default: str = BY_DEFAULT) -> None:
    text = f"calibration text: {TEXTS}, or {OWN}, what the model writes itself {default}"
    sub.add_argument("--calibration", metavar="TEXT", type=given, help=text)
    sub.add_argument("--samples", type=positive, default=samples, help="calibration sequences (default: %(default)s)")


def add_seqlen(sub: argparse.ArgumentParser, default: int = 2048) -> None:
    text = (
        f"tokens a sequence (default: {SEQLEN} for the embedded models, else {default}, or the model's limit if less)"
    )
    sub.add_argument("--seqlen", type=positive, help=text)


def add_evaluation(sub: argparse.ArgumentParser, note: str = "") -> None:
    help = f"text to measure perplexity on: {TEXTS} (default: the calibration text, else as there){note}"
    sub.add_argument("--evaluation", metavar="TEXT", type=given, help=help)
    sub.add_argument("--eval-samples", type=positive, help="measure on the first so many windows (default: all)")


def add_out(sub: argparse.ArgumentParser, required: bool) -> None:
    sub.add_argument("--out", metavar="DIR", type=given, required=required, help="folder to save the model to")
    sub.add_argument("--force", action="store_true", help="replace DIR if it has files in it")


def given(text: str) -> str:
    """An argument's type: a name, which an unset variable of the shell isn't."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def positive(text: str) -> int:
    """An argument's type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
