"""The parser of the command line: every command and option. It imports neither torch nor transformers.

An option that isn't given is None, and the function that takes it has its default. So has it the check of its values.
"""

import argparse
import dataclasses
from collections.abc import Callable

from ..corpus.embedded import EMBEDDED, SEQLEN
from ..recovery.options import RecoveryOptions
from ..version import __version__

OWN = "own"  # in place of a text: what the model writes itself
PICTURE = "minislice-demo.png"
MODEL_HELP = f"one of {', '.join(EMBEDDED)}, smollm2, a model's folder, a GGUF file, or a name on the hub"
TEXT = "embedded, wikitext2, alpaca, or a text, json, jsonl or parquet file"
DEFAULT_TEXT = "(default: embedded for the embedded models, wikitext2 for others)"
HALVES = "; if one file is named for both, its first half calibrates and its second is measured on"
HEAD = "what becomes of a tied head: tied (the default where both ends are whole), own (the paper's) or fitted"
FORMS = "full (the paper's), low-rank (computes the same) or none (default: low-rank)"
LISTED = "comma-separated"
DTYPES = ["float32", "bfloat16", "float16", "float64"]
RECOVERY_HELPS = {
    "rank": "of the LoRA matrices",
    "alpha": "their product is scaled by alpha / rank",
    "dropout": "of what the LoRA matrices read",
    "learning_rate": "AdamW's, at its highest",
    "epochs": "passes over the sequences",
    "steps": "instead of --epochs",
    "accumulation": "forward passes a step",
    "held_out": "share of the sequences that is watched instead of trained on",
    "every": "steps between two looks at that share, and between two checkpoints",
    "patience": "looks without a lower loss before training stops",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="minislice",
        description="SliceGPT: make a trained transformer smaller by deleting rows and columns of its weights.",
        epilog="Start with 'minislice demo'. 'minislice COMMAND --help' explains a command's options. "
        "'torchrun --nproc-per-node N -m -- minislice slice ...' shares the calibration set among N processes, each on "
        "a GPU of its own.",
    )
    parser.add_argument("--version", action="version", version=f"minislice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (text, add_arguments) in COMMANDS.items():
        complete(commands.add_parser(name, help=text, description=in_full(text)), add_arguments)
    return parser


def in_full(text: str) -> str:
    """A sentence, where `--help` of all commands has it in short."""
    return f"{text[0].upper()}{text[1:]}."


def complete(sub: argparse.ArgumentParser, add_arguments: Callable[[argparse.ArgumentParser], None]) -> None:
    """Give a parser the arguments of one command, and what all commands take."""
    add_arguments(sub)
    flag(sub, "--json", "print one JSON document instead of text")
    flag(sub, "--quiet", "no progress bars")


def demo(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--samples", type=positive, default=8, help="calibration and evaluation sequences (default: 8)")
    text = f"new PNG file of the picture (default: {PICTURE}, which is replaced)"
    sub.add_argument("--picture", metavar="FILE", type=given, default=PICTURE, help=text)
    add_machine(sub)


def verify(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    add_calibration(sub, 4, "(default: embedded; random tokens where the tokenizer can't read that)")
    add_seqlen(sub, SEQLEN)
    sub.add_argument("--dtypes", type=names, help=f"{LISTED} (default: float64, float32, bfloat16, float16)")
    text = "try every symmetry of a transformer instead of the steps of SliceGPT"
    sub.add_argument("--symmetries", action="store_true", help=text)
    add_machine(sub)


def slice(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    paper = sub.add_argument_group("the paper's options")
    width, first, last = (paper.add_mutually_exclusive_group() for _ in range(3))
    width.add_argument("--slicing", type=float, help="fraction of the width to delete (default: 0.25)")
    text = f"width to keep; or one for each boundary, {LISTED}, the last for the head"
    width.add_argument("--width", type=one_or_more, metavar="WIDTH[,WIDTH...]", help=text)
    width.add_argument("--discard", type=float, help="fraction of the variance to delete at each boundary")
    paper.add_argument("--multiple", type=positive, help="round a fraction's width to a multiple of this (default: 8)")
    text = "principal components of the norm's output, normalized, or of its input, raw (default: normalized)"
    paper.add_argument("--signal", help=text)
    paper.add_argument("--adapter", help=f"form of the residual adapters: {FORMS}")
    text = "low-rank: drop directions up to this cosine deficit (default: 0)"
    paper.add_argument("--tolerance", type=float, help=text)
    paper.add_argument("--head", help=HEAD)
    off, on = {"action": "store_false", "default": None}, {"action": "store_true", "default": None}
    first.add_argument("--keep-embedding", dest="slice_embedding", **off, help="leave the first boundary whole")
    first.add_argument("--slice-embedding", **on, help="slice it (default, unless the head stays tied)")
    last.add_argument("--keep-head", dest="slice_head", **off, help="leave the last boundary whole (default)")
    last.add_argument("--slice-head", **on, help="slice it too")
    beyond = sub.add_argument_group("beyond the paper")
    text = "fraction of every MLP's neurons to delete, or how many to leave, a number for each MLP"
    beyond.add_argument("--neurons", type=fraction_or_ints, metavar="N[,N...]", help=text)
    beyond.add_argument("--drop", type=several(int), metavar="N[,N...]", help="blocks to leave out whole")
    beyond.add_argument("--repair", **on, help="solve for each W_out again, to make up for what slicing loses")
    beyond.add_argument("--reconstruct", **on, help="after --repair, move all matrices of each block for that purpose")
    beyond.add_argument("--fisher", **on, help="choose the neurons to delete by what they mean to the loss")
    others = sub.add_argument_group("other bases, to compare with")
    others.add_argument("--basis", help="what to keep: pca, random or column-norm (default: pca)")
    others.add_argument("--orientation", help="of the basis in the subspace it keeps: pca or random (default: pca)")
    add_texts(sub, 128)
    text = (
        "bring one layer at a time into memory, from MODEL's safetensors files; needs --out. Called again after an "
        "interruption, it goes on from the last finished layer. Measure the result with 'minislice eval DIR'"
    )
    flag(add_machine(sub, batch_size=True), "--stream", text)
    add_out(sub)


def compress(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    sub.add_argument("--size", type=float, default=0.8, help="share of the parameters to keep (default: 0.8)")
    flag(sub, "--plan-only", "print what would be deleted, and delete nothing")
    flag(sub, "--stock", "delete nothing but neurons, as many in every MLP: the result is an ordinary model")
    flag(sub, "--reconstruct", "move all matrices of each block, to make up for what is lost")
    flag(sub, "--fisher", "choose each MLP's neurons by what they mean to the loss")
    flag(sub, "--keep-blocks", "leave no whole block out")
    flag(sub, "--keep-width", "leave the signal's width as it is")
    add_texts(sub, 128)
    add_machine(sub, batch_size=True)
    add_out(sub)


def evaluate(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    add_seqlen(sub)
    add_evaluation(sub)
    add_machine(sub)


def zeroshot(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    add_tasks(sub, f"names of the harness's tasks, {LISTED} (default: the paper's five)")
    add_machine(sub, batch_size=True)


def recover(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    sub.add_argument("--calibration", metavar="TEXT", help=f"text to train on: {TEXT} {DEFAULT_TEXT}")
    sub.add_argument("--samples", type=positive, help="training sequences (default: 1000, of Alpaca 5000)")
    text = "tokens a sequence, of training and evaluation (default: 1024, or the model's limit if less)"
    sub.add_argument("--seqlen", type=positive, help=text)
    add_evaluation(sub)
    training = sub.add_argument_group("training")
    for field in dataclasses.fields(RecoveryOptions):
        if field.name in RECOVERY_HELPS:
            note = "" if field.default is None else f" (default: {field.default:g})"
            kind = float if isinstance(field.default, float) else positive
            option = "--" + field.name.replace("_", "-")
            training.add_argument(option, type=kind, help=RECOVERY_HELPS[field.name] + note)
    flag(training, "--train-adapters", "train the residual adapters too")
    training.add_argument("--batch-size", type=positive, default=1, help="sequences a forward pass (default: 1)")
    add_machine(sub)
    add_out(sub, required=True)


def generate(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    sub.add_argument("--prompt", required=True, help="text to continue")
    sub.add_argument("--max-new-tokens", type=positive, default=64, help="(default: 64)")
    flag(sub, "--do-sample", "sample, instead of taking the likeliest token")
    add_machine(sub)


def export(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    add_out(sub, required=True)
    add_machine(sub)


def cost(sub: argparse.ArgumentParser) -> None:
    sub.description += (
        " Only the model's config is read: times depend on shapes alone, so the weights are random, and the bases that "
        "slicing would find are too. MODEL may also be one of the paper's shapes, such as opt-125m or llama-2-7b."
    )
    add_model(sub)
    text = f"fractions to delete, {LISTED} (default: 0.25)"
    sub.add_argument("--slicing", type=several(float), default=[0.25], help=text)
    sub.add_argument("--adapter", type=names, default=["low-rank"], help=f"{LISTED}: {FORMS}")
    flag(sub, "--slice-head", "the last boundary too")
    sub.add_argument("--head", help=HEAD)
    sub.add_argument("--prompt", type=positive, default=128, help="tokens of the prefill (default: 128)")
    sub.add_argument("--length", type=positive, default=128, help="tokens generated (default: 128)")
    sub.add_argument("--rounds", type=positive, default=5, help="turns of each model (default: 5)")
    text = "sequences generated together, for the throughput (default: on a GPU the largest that fits, else 8)"
    sub.add_argument("--batch-size", type=positive, help=text)
    text = "table 12 as well: every matrix product of one layer, so many times (the paper: 1000)"
    sub.add_argument("--products", type=positive, metavar="REPEATS", help=text)
    add_machine(sub)


def compare(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    sub.add_argument("--variants", type=names, help=f"ways to make it smaller, {LISTED} (default: all)")
    text = f"fractions of the dense model's parameters that may be left, {LISTED} (default: 0.9,0.8,0.75,0.7)"
    sub.add_argument("--sizes", type=several(float), help=text)
    add_texts(sub, 64)
    text = f"another kind of text to measure on: {TEXT}"
    sub.add_argument("--second-evaluation", metavar="TEXT", type=given, help=text)
    add_tasks(sub, f"zero-shot tasks to measure as well, {LISTED}, as in 'minislice zeroshot' (default: none)")
    text = "folder for results.jsonl, table.md and plot.png; called again, it measures what results.jsonl lacks"
    sub.add_argument("--out", metavar="DIR", type=given, required=True, help=text)
    add_machine(sub)


def families(sub: argparse.ArgumentParser) -> None:
    """It has no arguments of its own."""


def propose(sub: argparse.ArgumentParser) -> None:
    add_model(sub)
    sub.add_argument("--seed", type=int, default=0, help="of the tokens and scales that are tried (default: 0)")


# Each command's help and arguments; `cli` runs the file of the same name ("eval": evaluate).
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": ("fuse, rotate and slice three small models and show what changes; takes half a minute", demo),
    "verify": ("measure whether a model has the invariance; exit status 1 if it has not", verify),
    "slice": ("slice a model and measure what it costs; save it with --out", slice),
    "compress": ("delete what costs least, in width, neurons and blocks, until a size is reached", compress),
    "eval": ("measure a model's perplexity and count its parameters", evaluate),
    "zeroshot": ("measure a model's accuracy on zero-shot tasks, with the LM Evaluation Harness", zeroshot),
    "recover": ("fine-tune a sliced model with LoRA, merge, and save it", recover),
    "generate": ("continue a prompt", generate),
    "export": ("write a sliced model as a stock architecture that needs no minislice", export),
    "cost": ("time inference, dense beside sliced in one run: latency, throughput, memory, FLOPs", cost),
    "compare": ("compare ways to make a model smaller, at equal numbers of parameters", compare),
    "families": ("list the model types that can be sliced, and why others can't", families),
    "propose": ("find the entry of the family table that describes a model; exit status 1 if there is none", propose),
}


def flag(group: argparse._ActionsContainer, option: str, text: str) -> None:
    group.add_argument(option, action="store_true", help=text)


def add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", type=given, help=MODEL_HELP)
    flag(sub, "--trust-remote-code", "run the Python files that come with MODEL, if it has an architecture of its own")


def add_machine(sub: argparse.ArgumentParser, batch_size: bool = False) -> argparse._ArgumentGroup:
    machine = sub.add_argument_group("how it is computed")
    if batch_size:
        machine.add_argument("--batch-size", type=positive, default=8, help="sequences computed together (default: 8)")
    machine.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    text = "such as cpu, cuda:1; for eval and generate also auto, all there are (default: cuda if there is one)"
    machine.add_argument("--device", help=text)
    machine.add_argument("--dtype", choices=DTYPES, help="of weights and signal (default: float32 on a CPU)")
    return machine


def add_texts(sub: argparse.ArgumentParser, samples: int) -> None:
    texts = sub.add_argument_group("texts")
    add_calibration(texts, samples)
    add_seqlen(texts)
    add_evaluation(texts)


def add_calibration(group: argparse._ActionsContainer, samples: int, default: str = DEFAULT_TEXT) -> None:
    text = f"calibration text: {TEXT}; or {OWN}, what the model writes itself {default}"
    group.add_argument("--calibration", metavar="TEXT", type=given, help=text)
    group.add_argument("--samples", type=positive, default=samples, help="calibration sequences (default: %(default)s)")


def add_seqlen(group: argparse._ActionsContainer, default: int = 2048) -> None:
    text = f"tokens a sequence (default: {SEQLEN} for the embedded models, else {default}, or the model's limit)"
    group.add_argument("--seqlen", type=positive, help=text)


def add_evaluation(group: argparse._ActionsContainer) -> None:
    text = f"text to measure perplexity on: {TEXT} (default: the calibration text, else as there){HALVES}"
    group.add_argument("--evaluation", metavar="TEXT", type=given, help=text)
    group.add_argument("--eval-samples", type=positive, help="measure on the first so many windows (default: all)")


def add_tasks(sub: argparse.ArgumentParser, text: str) -> None:
    sub.add_argument("--tasks", type=names, help=text)
    text = "a folder with TASK.jsonl for each task, its items one a line; without it they come from the hub"
    sub.add_argument("--tasks-from", metavar="DIR", help=text)
    sub.add_argument("--limit", type=positive, help="only the first so many items of each task")


def add_out(sub: argparse.ArgumentParser, required: bool = False) -> None:
    sub.add_argument("--out", metavar="DIR", type=given, required=required, help="folder to save the model to")
    flag(sub, "--force", "replace DIR if it has files in it")


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


def several(kind: Callable[[str], object]) -> Callable[[str], list]:
    """An argument's type: values of one kind, comma-separated."""

    def values(text: str) -> list:
        try:
            return [kind(value.strip()) for value in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {LISTED} numbers, got {text!r}") from None

    return values


def names(text: str) -> list[str]:
    return list(dict.fromkeys(several(given)(text)))


def one_or_more(text: str) -> int | list[int]:
    """One width, or one for each boundary."""
    numbers = several(positive)(text)
    return numbers if len(numbers) > 1 else numbers[0]


def fraction_or_ints(text: str) -> float | list[int]:
    """A fraction, or a number for each MLP."""
    return several(int)(text) if "," in text else float(text)
