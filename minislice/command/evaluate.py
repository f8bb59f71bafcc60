"""`minislice eval`: a model's perplexity and size."""

import argparse

from ..measuring.cost import parameters
from ..measuring.perplexity import perplexity
from .inputs import describe_text, evaluation_tokens, load_both
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
    model, tokenizer = load_both(arguments)
    tokens = evaluation_tokens(arguments, model, tokenizer)
    result = {
        "model": arguments.model,
        "perplexity": perplexity(model, tokens, progress=not arguments.quiet),
        "parameters": parameters(model),
        "evaluation": describe_text(arguments, "test", tokens),
    }
    print_result(arguments, result)
    return 0
