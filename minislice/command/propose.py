"""`minislice propose`: the entry that would describe a model."""

import argparse

from ..measuring.propose import entry, propose
from ..storage.checkpoint import load
from .output import print_result


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
