"""`minislice verify`: measure whether a model has the invariance."""

import argparse
import dataclasses

from ..measuring.invariance import TOLERANCES, verify
from .inputs import calibration_tokens, load_both
from .output import print_result
from .parser import add_calibration, add_machine, add_model, add_seqlen

HELP = "measure whether a model has the invariance; exit status 1 if it has not"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    add_model(sub)
    add_calibration(sub, 4)
    add_seqlen(sub)
    sub.add_argument("--dtypes", default=",".join(TOLERANCES), help="comma-separated (default: %(default)s)")
    add_machine(sub)


def run(arguments: argparse.Namespace) -> int:
    model, tokenizer = load_both(arguments)
    tokens = calibration_tokens(arguments, arguments.calibration, model, tokenizer, default_samples=4)
    dtypes = arguments.dtypes.split(",")
    found = verify(model, tokens, dtypes=dtypes, seed=arguments.seed, progress=not arguments.quiet)
    print_result(
        arguments,
        {
            "passed": found.passed,
            "reference_perplexity": found.reference_perplexity,
            "measurements": [dataclasses.asdict(m) | {"passed": m.passed} for m in found.measurements],
        },
        str(found),
    )
    return 0 if found.passed else 1
