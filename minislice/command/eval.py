"""`minislice eval`: a model's perplexity and size."""

import argparse
import time

from ..measuring.cost import parameters
from .inputs import load_both, measured, texts_of, token_sets
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    texts = texts_of(arguments)
    model, tokenizer = load_both(arguments)
    tokens = token_sets(arguments, texts, model, tokenizer)
    record = getattr(model.config, "slicing", None) or {}  # a sliced model's: it may have seen the evaluation text
    began = time.perf_counter()
    result = {
        "model": arguments.model,
        "perplexity": measured(arguments.model, model, tokens.evaluation, progress=not arguments.quiet),
        "parameters": parameters(model),
        **({"calibration": record["calibration"]} if "calibration" in record else {}),
        **tokens.described,
        "seconds": time.perf_counter() - began,
    }
    print_result(arguments, result)
