"""`minislice propose`: the entry that would describe a model."""

import argparse

from ..measuring.propose import entry, propose
from ..storage.checkpoint import load
from .output import print_result


def run(arguments: argparse.Namespace) -> int:
    model, _ = load(arguments.model, dtype="float32", trust_remote_code=arguments.trust_remote_code)
    proposal = propose(model, seed=arguments.seed)
    result = {
        "model_type": proposal.model_type,
        "passed": proposal.passed,
        "entry": None if proposal.family is None else entry(proposal.model_type, proposal.family),
        "obstacle": proposal.obstacle,
    }
    print_result(arguments, result, str(proposal))
    return 0 if proposal.passed else 1
