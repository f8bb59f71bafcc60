"""C1, the capstone: make the embedded LLaMA a fifth smaller, however you like (notebooks 05 and 09).

A student hands in a plan, a few numbers. The judge applies it to the model itself, counts the parameters itself, and
measures the perplexity itself. So nothing that a student writes is executed here, and no model is handed in.
"""

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .exercise import Case, Failure, Question
from .markdown import read

MODEL, SIZE = "mini-llama", 0.8
SAMPLES, SEQLEN, EVERY = 64, 256, 32  # calibration sequences, tokens in each; one window in 32 is measured on
# Perplexity over the dense one: about what these methods reach (notebooks/measure/capstone.py).
GOALS = {"neurons": 1.30, "slicegpt": 1.08, "mixed": 1.05}
PARTS = {"neurons": 5, "slicegpt": 10, "mixed": 10}
# The options of a plan that are used. `SlicingOptions` says which numbers they may have.
FORM = {"width": int | list, "neurons": list, "drop": list, "adapter": str, "repair": bool | int}


@lru_cache(1)
def frozen() -> tuple:
    """The dense model, the calibration set, the windows that are measured on, and the dense model's losses on them."""
    from transformers.utils import logging

    from minislice.corpus.text import load_text, sample, tokenize, windows
    from minislice.measuring.paired import window_losses
    from minislice.storage.checkpoint import load

    logging.disable_progress_bar()
    model, tokenizer = load(MODEL, dtype="float32")
    tokens = sample(tokenize(load_text("embedded"), tokenizer), samples=SAMPLES, seqlen=SEQLEN)
    evaluation = windows(tokenize(load_text("embedded", "test"), tokenizer), SEQLEN)[::EVERY]
    return model, tokens, evaluation, window_losses(model, evaluation)


def measure(plan: Mapping[str, Any]) -> tuple[float, Any]:
    """The share of the parameters that a plan leaves, and the perplexity over the dense one, a `Ratio`.

    Raises:
        ValueError: the plan doesn't fit the model.
    """
    from minislice.beyond.slicing import slice_model
    from minislice.measuring.cost import parameters
    from minislice.measuring.paired import perplexity_ratio, window_losses

    model, tokens, evaluation, dense = frozen()
    sliced = slice_model(copy.deepcopy(model), tokens, **{**plan, "repair": bool(plan.get("repair"))})
    return parameters(sliced) / parameters(model), perplexity_ratio(window_losses(sliced, evaluation), dense)


def _judge(plan: Mapping[str, Any]) -> Failure | None:
    try:
        share, ratio = measure(plan)
    except ValueError as error:
        return Failure("plan", str(error), hint="what does SlicingOptions say of this option?")
    if share > SIZE:
        return Failure("plan", f"it leaves {share:.1%} of the parameters, more than {SIZE:.0%}")
    missed = tuple(name for name, goal in GOALS.items() if not ratio.ratio <= goal)
    if not missed:
        return None
    what = f"the perplexity is {ratio} times the dense one's, with {share:.1%} of the parameters"
    fine = tuple(name for name in GOALS if name not in missed)
    return Failure("plan", f"{what}; not reached: {', '.join(missed)}", fine=fine, wrong=missed)


C1, check = read("c1", plan=Question(lambda rng: [Case({"blocks": 8}, {})], lambda: FORM, _judge, PARTS))
