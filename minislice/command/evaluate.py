"""`minislice eval`: a model's perplexity and size."""

import argparse
import time

from ..measuring.cost import parameters
from .inputs import load_both, measured, texts_of, token_sets
from .output import print_result
from .parser import add_evaluation, add_machine, add_model, add_seqlen

HELP = "measure a model's perplexity and count its parameters"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    add_model(sub)
    add_seqlen(sub)
    add_evaluation(sub)
    add_machine(sub)


def run(arguments: argparse.Namespace) -> int:
    texts = texts_of(arguments)
    model, tokenizer = load_both(arguments)
    _, tokens = token_sets(arguments, texts, model, tokenizer)
    began = time.perf_counter()
    result = {
        "model": arguments.model,
        "perplexity": measured(arguments.model, model, tokens, progress=not arguments.quiet),
        "parameters": parameters(model),
        "evaluation": texts.describe("test", tokens),
        "seconds": time.perf_counter() - began,
    }
    print_result(arguments, result)
    return 0
