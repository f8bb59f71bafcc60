"""`minislice eval`: a model's perplexity and size."""

import argparse
import time

from ..measuring.cost import parameters
from .inputs import measured, prepared
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    model, _, _, evaluation, described = prepared(arguments)
    record = getattr(model.config, "slicing", None) or {}  # a sliced model's: it may have seen the evaluation text
    began = time.perf_counter()
    result = {
        "model": arguments.model,
        "perplexity": measured(arguments.model, model, evaluation, progress=not arguments.quiet),
        "parameters": parameters(model),
        **({"calibration": record["calibration"]} if "calibration" in record else {}),
        **described,
        "seconds": time.perf_counter() - began,
    }
    print_result(arguments, result)
