"""`minislice propose`: the entry that would describe a model."""

import argparse

from ..measuring.propose import entry, propose
from ..storage.checkpoint import load
from .output import print_result
from .parser import add_model

HELP = "find the entry of the family table that describes a model; exit status 1 if there is none"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    add_model(sub)
    sub.add_argument("--seed", type=int, default=0, help="of the tokens and scales that are tried (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    model, _ = load(arguments.model, dtype="float32", trust_remote_code=arguments.trust_remote_code)
    found = propose(model, seed=arguments.seed)
    print_result(
        arguments,
        {
            "model_type": found.model_type,
            "passed": found.passed,
            "entry": None if found.family is None else entry(found.model_type, found.family),
            "obstacle": found.obstacle,
        },
        str(found),
    )
    return 0 if found.passed else 1
