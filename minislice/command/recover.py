"""`minislice recover`: fine-tune a sliced model, and save the result as a sliced model like any other."""

import argparse
import dataclasses
from pathlib import Path

from ..architecture.folder import require_free
from ..measuring.cost import parameters
from ..recovery.checkpoints import delete
from ..recovery.options import RecoveryOptions
from ..recovery.recover import recover, require_sliced
from .inputs import files_read, load_both, seqlen_of, texts_of, token_sets
from .output import print_result
from .parser import TEXT_HELP, add_evaluation, add_machine, add_model, add_out, positive

HELP = "fine-tune a sliced model with LoRA, merge, and save it"
SEQLEN = 1024  # the paper's
SEQUENCES = {"alpaca": 5000}  # the paper's; of WikiText-2, and of any other text,
OTHERWISE = 1000

HELPS = {
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


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    add_model(sub)
    sub.add_argument("--calibration", metavar="TEXT", help=f"text to train on: {TEXT_HELP}")
    text = f"training sequences (default: {OTHERWISE}, of Alpaca {SEQUENCES['alpaca']})"
    sub.add_argument("--samples", type=positive, help=text)
    text = f"tokens a sequence, of training and evaluation (default: {SEQLEN}, or the model's limit if less)"
    sub.add_argument("--seqlen", type=positive, help=text)
    add_evaluation(sub, "; if it is the calibration file, its first half trains and its second is measured on")
    defaults = {field.name: field.default for field in dataclasses.fields(RecoveryOptions)}
    for name, text in HELPS.items():
        default = defaults[name]
        note = "" if default is None else f" (default: {default:g})"
        kind = float if isinstance(default, float) else positive
        sub.add_argument("--" + name.replace("_", "-"), type=kind, help=text + note)
    sub.add_argument("--train-adapters", action="store_true", default=None, help="train the residual adapters too")
    sub.add_argument("--batch-size", type=positive, default=1, help="sequences a forward pass (default: 1)")
    add_out(sub, required=True)
    add_machine(sub)


def run(arguments: argparse.Namespace) -> int:
    """Called again after an interruption, it goes on from the last checkpoint, in a folder beside `--out`."""
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(RecoveryOptions)}
    options = {name: value for name, value in given.items() if value is not None}
    RecoveryOptions(**options)  # a bad option is told before a large model is loaded
    target = require_free(arguments.out, arguments.force, files_read(arguments))
    texts = texts_of(arguments)
    model, tokenizer = load_both(arguments)
    require_sliced(model)
    arguments.seqlen = seqlen_of(arguments, model, default=SEQLEN)
    arguments.samples = arguments.samples or SEQUENCES.get(texts.calibration, OTHERWISE)
    training, evaluation = token_sets(arguments, texts, model, tokenizer)
    checkpoints = target.with_name(f".{target.name}.recovery")
    report = recover(
        model,
        training,
        evaluation=evaluation,
        folder=checkpoints,
        batch_size=arguments.batch_size,
        progress=not arguments.quiet,
        **options,
    )
    trained_on, described = texts.describe("calibration", training), texts.describe("test", evaluation)
    notes = {"perplexity": f"{report.after:.4f} ({described}); {report.before:.4f} before recovery on {trained_on}"}
    model.save_pretrained(target, tokenizer=tokenizer, force=arguments.force, notes=notes)
    delete(checkpoints)
    result = {
        "model": arguments.model,
        "perplexity before": report.before,
        "perplexity after": report.after,
        "parameters": parameters(model),
        "parameters trained": report.trained,
        "steps": report.steps,
        "held-out perplexity": [perplexity for _, perplexity in report.held_out],
        "seconds": report.seconds,
        "trained on": trained_on,
        "evaluation": described,
        "saved to": str(Path(arguments.out)),
    }
    print_result(arguments, result)
    return 0
