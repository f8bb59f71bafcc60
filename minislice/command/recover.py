"""`minislice recover`: fine-tune a sliced model, and save the result as a sliced model like any other."""

import argparse

from ..measuring.cost import parameters
from ..recovery.checkpoints import delete
from ..recovery.options import RecoveryOptions
from ..recovery.recover import recover, require_sliced
from .inputs import given, prepared, require_out, sliced_shapes
from .output import print_result

SEQLEN, SEQUENCES, FROM_ALPACA = 1024, 1000, 5000  # the paper's


def run(arguments: argparse.Namespace) -> None:
    """Called again after an interruption, it goes on from the last checkpoint, in a folder beside `--out`."""
    options = given(arguments, RecoveryOptions)
    RecoveryOptions(**options)  # a bad option is told before a large model is loaded
    target = require_out(arguments)
    require_sliced(sliced_shapes(arguments))  # this too
    arguments.samples = arguments.samples or (FROM_ALPACA if arguments.calibration == "alpaca" else SEQUENCES)
    model, tokenizer, training, test, described = prepared(arguments, seqlen=SEQLEN)
    checkpoints = target.with_name(f".{target.name}.recovery")
    options |= {"batch_size": arguments.batch_size, "progress": not arguments.quiet}
    report = recover(model, training, evaluation=test, folder=checkpoints, **options)
    trained_on, evaluation = described["calibration"], described["evaluation"]
    notes = {"perplexity": f"{report.after:.4f} ({evaluation}); {report.before:.4f} before recovery on {trained_on}"}
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
        "evaluation": evaluation,
        "saved to": arguments.out,
    }
    print_result(arguments, result)
