"""`minislice demo`: the three embedded models, taken through every step of the paper, as one table each.

Nothing changes until rows and columns are deleted: the first rows show it, the rest what deleting costs.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .adapters import FORMS
from .checkpoint import EMBEDDED, load
from .evaluation import parameters, perplexity
from .families import network
from .fusion import fuse
from .invariance import logits_of, relative_error
from .rotation import rotate
from .slicing import slice_model
from .text import load_text, sample, tokenize

SLICINGS = (0.1, 0.2, 0.25, 0.3)
SEQLEN = 256  # the embedded models were trained on windows of this length


@dataclass(frozen=True)
class Row:
    """One model after one step."""

    model: str
    step: str
    width: int
    error: float  # of the logits against the dense model's: max |difference| over max |logit|
    perplexity: float
    parameters: int


def demo_rows(
    samples: int = 16, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[Row]:
    """Load, fuse, rotate and slice the embedded models on `samples` sequences; measure on as many held-out ones."""
    tokens = None
    for name in EMBEDDED:
        model, tokenizer = load(name, dtype=dtype, device=device)
        if tokens is None:  # the three share one tokenizer
            streams = [tokenize(load_text("embedded", split), tokenizer) for split in ("calibration", "test")]
            tokens = [sample(stream, samples, SEQLEN, seed) for stream in streams]
        calibration, evaluation = tokens
        few = evaluation[:4]
        reference = logits_of(model, few)

        def measured(step: str, changed: PreTrainedModel) -> Row:
            return Row(
                model=name,  # noqa: B023 - called before the next name
                step=step,
                width=network(changed).widths[0],
                error=relative_error(logits_of(changed, few), reference),  # noqa: B023
                perplexity=perplexity(changed, evaluation),  # noqa: B023
                parameters=parameters(changed),
            )

        yield measured("dense", model)
        for step, change in _steps(calibration, seed).items():
            yield measured(step, change(copy.deepcopy(model)))


def _steps(calibration: torch.Tensor, seed: int) -> dict[str, Callable[[PreTrainedModel], PreTrainedModel]]:
    steps = {
        "fused": fuse,
        "rotated": lambda model: rotate(model, seed=seed),
        "rotated per block": lambda model: rotate(model, per_block=True, seed=seed),
    }
    for slicing in SLICINGS:
        for form in FORMS:
            steps[f"sliced {slicing:.0%}, {form}"] = lambda model, slicing=slicing, form=form: slice_model(
                model, calibration, slicing=slicing, adapter=form, seed=seed
            )
    return steps


HEADER = f"{'':24s} {'width':>6s} {'logits error':>13s} {'perplexity':>11s} {'parameters':>11s}"


def format_row(row: Row) -> str:
    return f"{row.step:24s} {row.width:6d} {row.error:13.1e} {row.perplexity:11.2f} {row.parameters:11,d}"
