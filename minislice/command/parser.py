"""The parser of the command line: every command and option. It imports neither torch nor transformers.

Where a default is None here, the command's file or the function that it calls decides, and checks the value.
"""

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Callable

from ..corpus.embedded import EMBEDDED, SEQLEN
from ..recovery.options import RecoveryOptions
from ..version import __version__


def given(text: str) -> str:
    """A text that isn't empty, as an unset variable of the shell is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def several(kind: Callable[[str], object]) -> Callable[[str], list]:
    """Values of one kind, comma-separated."""

    def numbers(text: str) -> list:
        return [kind(value.strip()) for value in text.split(",")]

    return numbers


def one_or_each(kind: Callable[[str], object]) -> Callable[[str], object]:
    """One value for all boundaries or MLPs, or a whole number for each of them."""

    def number(text: str) -> object:
        return several(int)(text) if "," in text else kind(text)

    return number


names = several(given)

# Options by name: the kind of the value (bool: a switch), the default (...: it must be given), what it means

Options = dict[str, tuple]


def options_of(options: type) -> Options:
    """The fields of a dataclass that have a help text; if one isn't given, the class knows its default."""
    rows, kinds = {}, {"bool": bool, "int": positive, "float": float, "str": given}
    for field in dataclasses.fields(options):
        if text := field.metadata.get("help"):
            kind = next(kind for name, kind in kinds.items() if name in str(field.type))
            note = "" if kind is bool or field.default is None else f" (default: {field.default})"
            rows["--" + field.name.replace("_", "-")] = (kind, None, text + note)
    return rows


OWN = "own"  # in place of a text: what the model writes itself
PICTURE = "minislice-demo.png"
SPREAD = ("eval", "zeroshot", "generate")  # the commands that can use several GPUs
DTYPES = ["float32", "bfloat16", "float16", "float64"]
LISTED = "comma-separated"
TEXT = "embedded, wikitext2, alpaca, or a text, json, jsonl or parquet file"
DEFAULT_TEXT = "(default: embedded for the embedded models, sliced ones too, wikitext2 for others)"
HEAD = "what becomes of a tied head: tied (default, unless an option narrows an end), own (the paper's) or fitted"
FORMS = "full (the paper's), low-rank (computes the same) or none"
METAVARS = {"model": "MODEL", "--out": "DIR"}

MODEL: Options = {
    "model": (given, ..., f"{', '.join(EMBEDDED)}, smollm2, a model's folder, a GGUF file, or a name on the hub"),
    "--trust-remote-code": (bool, False, "run the Python files that come with MODEL, if its architecture is its own"),
}
CALIBRATION: Options = {
    "--calibration": (given, None, f"calibration text: {TEXT}; or {OWN}, what the model writes itself {DEFAULT_TEXT}"),
    "--samples": (positive, 128, "calibration sequences"),
}
EVALUATION: Options = {
    "--seqlen": (positive, None, f"tokens a sequence (default: {SEQLEN} for embedded models, else at most 2048)"),
    "--evaluation": (given, None, f"to measure on: {TEXT} (default: the calibration text; one file is halved)"),
    "--eval-samples": (positive, None, "measure on the first so many windows (default: all)"),
}
EVAL: Options = EVALUATION | {"--evaluation": (given, None, f"to measure on: {TEXT} {DEFAULT_TEXT}")}
TEXTS = {"texts": CALIBRATION | EVALUATION}
TASKS: Options = {
    "--tasks": (names, None, f"names of the harness's tasks, {LISTED} (default: the paper's five)"),
    "--tasks-from": (given, None, "a folder with TASK.jsonl for each task; else they come from the hub"),
    "--limit": (positive, None, "only the first so many items of each task"),
}
OUT: Options = {
    "--out": (given, None, "folder to save the model to"),
    "--force": (bool, False, "replace DIR if it has files in it"),
}
MUST_SAVE = OUT | {"--out": (given, ..., "folder to save the model to")}
SEED: Options = {"--seed": (int, 0, "of everything random")}
COMPUTED: Options = {
    "--device": (given, None, f"cpu, cuda:1 ... (default: cuda if there is); {', '.join(SPREAD)}: also auto, all GPUs"),
    "--dtype": (DTYPES, None, "of weights and signal (default: float32 on a CPU, else as saved; export: as saved)"),
}
BATCH: Options = {"--batch-size": (positive, 8, "sequences computed together")}
MACHINE = {"how it is computed": COMPUTED}
SEEDED = {"how it is computed": SEED | COMPUTED}
IN_FLOAT32 = {"how it is computed": SEED | COMPUTED | {"--dtype": (DTYPES, "float32", "of weights and signal")}}
BATCHES = {"how it is computed": BATCH | SEED | COMPUTED}
PRINTED: Options = {
    "--json": (bool, False, "print one JSON document instead of text"),
    "--quiet": (bool, False, "no progress bars"),
}
DEMO: Options = {
    "--samples": (positive, 8, "calibration and evaluation sequences"),
    "--picture": (given, None, f"new PNG file of the picture (default: {PICTURE}, which alone is replaced)"),
}
VERIFY: Options = {
    "--calibration": (given, None, f"{TEXT}; or {OWN} (default: embedded; random tokens if no tokenizer fits)"),
    "--samples": (positive, 4, "calibration sequences"),
    "--seqlen": (positive, None, f"tokens a sequence (default: {SEQLEN}, or the model's limit)"),
    "--dtypes": (names, None, f"{LISTED} (default: float64, float32, bfloat16, float16)"),
    "--symmetries": (bool, False, "try every symmetry of a transformer instead of the steps of SliceGPT"),
}
PAPER: Options = {
    "--slicing": (float, None, "fraction of the width to delete (default: 0.25)"),
    "--width": (one_or_each(positive), None, f"width to keep; or one for each boundary, {LISTED}, the head's last"),
    "--discard": (float, None, "fraction of the variance to delete at each boundary"),
    "--multiple": (positive, None, "round a fraction's width to a multiple of this (default: 8)"),
    "--signal": (str, None, "components of the norm's output, normalized, or of its input, raw (default: normalized)"),
    "--adapter": (str, None, f"form of the residual adapters: {FORMS} (default: low-rank)"),
    "--tolerance": (float, None, "low-rank: drop directions up to this cosine deficit (default: 0)"),
    "--head": (str, None, HEAD),
    "--keep-embedding": ({"slice_embedding": False}, None, "leave the first boundary whole"),
    "--slice-embedding": ({"slice_embedding": True}, None, "slice it (default, unless the head stays tied)"),
    "--keep-head": ({"slice_head": False}, None, "keep all columns of the last boundary (default)"),
    "--slice-head": ({"slice_head": True}, None, "slice it too"),
}
BEYOND: Options = {
    "--neurons": (one_or_each(float), None, f"fraction of each MLP's neurons to delete; or how many stay, {LISTED}"),
    "--drop": (several(int), None, f"numbers of blocks to leave out whole, {LISTED}"),
    "--repair": (bool, False, "solve for each W_out again, to make up for what slicing loses"),
    "--reconstruct": (bool, False, "with --repair: afterwards adjust all matrices of each block, too"),
    "--fisher": (bool, False, "choose the neurons to delete by their estimated effect on the loss"),
}
BASES: Options = {
    "--basis": (str, None, "what to keep: pca, random or column-norm (default: pca)"),
    "--orientation": (str, None, "of the basis in the subspace it keeps: pca or random (default: pca)"),
}
SLICING = {"the paper's options": PAPER, "beyond the paper": BEYOND, "other bases, to compare with": BASES} | TEXTS
COMPRESS: Options = OUT | {
    "--size": (float, 0.8, "share of the parameters to keep"),
    "--plan-only": (bool, False, "print what would be deleted, and delete nothing"),
    "--stock": (bool, False, "delete nothing but neurons, as many in every MLP: the result is an ordinary model"),
    "--reconstruct": (bool, False, "adjust all matrices of each block, to make up for what is lost"),
    "--fisher": (bool, False, "choose each MLP's neurons by their estimated effect on the loss"),
    "--keep-blocks": (bool, False, "leave no whole block out"),
    "--keep-width": (bool, False, "leave the signal's width as it is"),
}
RECOVER: Options = {
    **MUST_SAVE,
    **EVALUATION,
    "--calibration": (given, None, f"text to train on: {TEXT} {DEFAULT_TEXT}"),
    "--samples": (positive, None, "training sequences (default: 1000, of Alpaca 5000)"),
    "--seqlen": (positive, None, f"tokens a sequence (default: {SEQLEN} for embedded models, else at most 1024)"),
}
GENERATE: Options = {
    "--prompt": (str, ..., "text to continue"),
    "--max-new-tokens": (positive, 64, "tokens to write"),
    "--do-sample": (bool, False, "sample, instead of taking the likeliest token"),
}
COST: Options = {
    "--slicing": (several(float), None, f"fractions to delete, {LISTED} (default: 0.25)"),
    "--adapter": (names, None, f"{LISTED}: {FORMS} (default: low-rank)"),
    "--slice-head": (bool, False, "the last boundary too"),
    "--head": (str, None, HEAD),
    "--prompt": (positive, 128, "tokens of the prefill"),
    "--length": (positive, 128, "tokens generated"),
    "--rounds": (positive, 5, "turns of each model"),
    "--batch-size": (positive, None, "sequences generated together (default: on a GPU the largest that fits, else 8)"),
    "--products": (positive, None, "also time each matrix product of one layer so often (table 12; the paper: 1000)"),
}
COMPARE: Options = {
    **CALIBRATION,
    **EVALUATION,
    **TASKS,
    "--samples": (positive, 64, "calibration sequences"),
    "--variants": (names, None, f"ways to make it smaller, {LISTED} (default: all)"),
    "--sizes": (several(float), None, f"shares of parameters that may be left, {LISTED} (default: 0.9,0.8,0.75,0.7)"),
    "--second-evaluation": (given, None, f"another kind of text to measure on: {TEXT}"),
    "--tasks": (names, None, f"zero-shot tasks to measure too, {LISTED}, as 'minislice zeroshot' does (default: none)"),
    "--out": (given, ..., "folder for results.jsonl, table.md and plot.png; called again, it adds what they lack"),
}
STREAM: Options = {
    "--stream": (bool, False, "one layer at a time in memory, from MODEL's safetensors files; see below"),
}
TRAINING = options_of(RecoveryOptions) | {"--batch-size": (positive, 1, "sequences a forward pass")}

# What each command does, its options, and others by the title in its help; `cli` runs the file of the command's name.
COMMANDS: dict[str, tuple[str, Options, dict[str, Options]]] = {
    "demo": ("fuse, rotate and slice three small models and show what changes; takes half a minute", DEMO, IN_FLOAT32),
    "verify": ("measure whether a model has the invariance; exit status 1 if it has not", MODEL | VERIFY, SEEDED),
    "slice": ("slice a model and measure what it costs; save it with --out", MODEL | OUT | STREAM, SLICING | BATCHES),
    "compress": ("delete the width, neurons and blocks that cost least", MODEL | COMPRESS, TEXTS | BATCHES),
    "eval": ("measure a model's perplexity and count its parameters", MODEL | EVAL, MACHINE),
    "zeroshot": ("measure a model's accuracy on tasks of the LM Evaluation Harness", MODEL | TASKS | BATCH, MACHINE),
    "recover": ("fine-tune a sliced model with LoRA, and save it", MODEL | RECOVER, {"training": TRAINING} | SEEDED),
    "generate": ("continue a prompt", MODEL | GENERATE, SEEDED),
    "export": ("write a sliced model as a stock architecture that needs no minislice", MODEL | MUST_SAVE, MACHINE),
    "cost": ("time inference, dense beside sliced: latency, throughput, memory, FLOPs", MODEL | COST, MACHINE),
    "compare": ("compare ways to make a model smaller, at equal numbers of parameters", MODEL | COMPARE, SEEDED),
    "families": ("list the model types that can be sliced, and why others can't", {}, {}),
    "propose": ("find the table's entry that describes a model; exit status 1 if there is none", MODEL | SEED, {}),
}
IDLE = {  # a command with one of its options, and the options that would do nothing beside that one
    "demo --json": ["--picture"],
    "slice --stream": ["--eval-samples"],
    "compress --stock": ["--keep-blocks", "--keep-width"],
    "compress --plan-only": ["--out", "--reconstruct", "--fisher"],
    "recover --steps": ["--epochs"],
}
EPILOGS = {
    "cost": "Only the model's config is read: times depend on shapes alone, so the weights and the bases are random. "
    "MODEL may also be one of the paper's shapes, such as opt-125m or llama-2-7b. On a GPU, a config without a "
    "dtype is taken as float16.",
    "compare": "Variants: slicegpt is the paper's method; aligned has no adapters; tied keeps a tied head tied; "
    "repaired has no adapters and solves for W_out again; neurons deletes neurons alone, depth whole layers; mixed "
    "does what 'minislice compress' does; fisher and reconstructed do it with the option of that name.",
    "recover": "Called again after an interruption, it goes on from the last checkpoint, in a folder beside DIR.",
    "slice": "--stream needs --out; called again after an interruption, it goes on from the last finished layer. "
    "'minislice eval DIR' measures its result, and --evaluation only says which text not to calibrate on. 'torchrun "
    "--nproc-per-node N -m -- minislice slice ...' shares the calibration set among N processes, each on a GPU of its "
    "own.",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="minislice",
        description="SliceGPT: make a trained transformer smaller by deleting rows and columns of its weights.",
        epilog="Start with 'minislice demo'. 'minislice COMMAND --help' explains a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"minislice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (text, options, others) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=in_full(text), epilog=EPILOGS.get(name))
        add_options(command, options | PRINTED)
        for title, rows in others.items():
            add_options(command.add_argument_group(title), rows)
    return parser


def idle(arguments: argparse.Namespace) -> str | None:
    """What to tell about options that are given and would do nothing; None where there are none."""
    given = {f"--{name.replace('_', '-')}" for name, value in vars(arguments).items() if value}
    for line, others in IDLE.items():
        command, option = line.split()
        names = [name for name in others if name in given]
        if command == arguments.command and option in given and names:
            return f"{', '.join(names)} would do nothing beside {option}: leave one or the other out"
    return None


def in_full(text: str) -> str:
    """A sentence, where `--help` of all commands has it in short."""
    return f"{text[0].upper()}{text[1:]}."


def add_options(group: argparse._ActionsContainer, options: Options) -> None:
    alternatives = defaultdict(group.add_mutually_exclusive_group)
    for name, (kind, default, text) in options.items():
        settings = {"help": text, "default": default}
        if isinstance(kind, dict):  # one of two switches for the same field
            ((field, value),) = kind.items()
            alternatives[field].add_argument(name, action="store_const", dest=field, const=value, **settings)
            continue
        if kind is bool:
            settings["action"] = "store_true"
        else:
            settings |= {"choices": kind} if isinstance(kind, list) else {"type": kind, "metavar": METAVARS.get(name)}
        if default is ...:
            settings |= {"default": None} | ({"required": True} if name.startswith("--") else {})
        elif kind is not bool and default is not None:
            settings["help"] += f" (default: {default})"
        group.add_argument(name, **settings)
