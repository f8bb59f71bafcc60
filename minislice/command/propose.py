"""`minislice propose`: the entry that would describe a model."""

import argparse

from transformers import AutoModelForCausalLM

from ..measuring.propose import entry, propose
from ..storage.checkpoint import load_config, locate
from .output import print_result


def run(arguments: argparse.Namespace) -> int:
    config, trusted = load_config(locate(arguments.model), arguments.trust_remote_code), arguments.trust_remote_code
    model = AutoModelForCausalLM.from_config(config, dtype="float32", trust_remote_code=trusted)  # any weights do
    proposal = propose(model, seed=arguments.seed)
    result = {
        "model_type": proposal.model_type,
        "passed": proposal.passed,
        "entry": None if proposal.family is None else entry(proposal.model_type, proposal.family),
        "obstacle": proposal.obstacle,
    }
    print_result(arguments, result, str(proposal))
    return 0 if proposal.passed else 1
