"""The equal-size comparison: perplexity against the parameters that are really left, adapters and head included.

At one width the adapter forms differ in size, so comparing them there flatters the largest. Slicing each at many
widths and comparing where their sizes meet is fair.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.network import network
from ..checks import are_ints, require
from ..corpus.batches import Tokens, kept
from ..likelihood import perplexity
from ..measuring.cost import parameters
from ..slicing import slice_model

# What is compared unless the caller says otherwise: options of `slice_model`, by the name that tables and plots show.
ADAPTERS = {
    "full": {"adapter": "full", "head": "own"},
    "low-rank": {"adapter": "low-rank", "head": "own"},
    "low-rank, 0.1": {"adapter": "low-rank", "tolerance": 0.1, "head": "own"},
    "none": {"adapter": "none", "head": "own"},
}
TIED_ADAPTERS = {
    "none, fitted head": {"adapter": "none", "head": "fitted"},
    "low-rank, tied head": {"head": "tied"},
}  # besides, where the head was tied


@dataclass(frozen=True)
class Point:
    """One sliced model."""

    variant: str
    width: int
    parameters: int
    perplexity: float


def equal_size(
    model: PreTrainedModel,
    calibration: Tokens,
    evaluation: Tokens,
    *,
    variants: Mapping[str, Mapping] | None = None,
    widths: Iterable[int] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> list[Point]:
    """Slice copies of a trained model to each width in each variant; the model itself is not touched.

    Args:
        calibration: ids, [sequences, tokens], for the principal components.
        evaluation: ids, for the perplexity.
        variants: options of `slice_model` by name; by default `ADAPTERS`, and `TIED_ADAPTERS` for a tied head.
        widths: by default nine from 60% to 100% of D.
    """
    net = network(model)
    if variants is None:
        variants = ADAPTERS | (TIED_ADAPTERS if net.head_was_tied else {})
    if widths is None:
        widths = sorted({round(net.trained_width * percent / 100) for percent in range(60, 101, 5)})
    are_options = isinstance(variants, Mapping) and all(isinstance(options, Mapping) for options in variants.values())
    require(are_options, "variants", "options of `slice_model` by the name of each variant", variants)
    require(are_ints(widths), "widths", "a list of whole numbers", widths)
    calibration, evaluation = kept(calibration), kept(evaluation)
    tasks = [(name, options, width) for name, options in variants.items() for width in widths]
    points = []
    for name, options, width in tqdm(tasks, desc="equal size", disable=not progress, leave=False):
        sliced = slice_model(copy.deepcopy(model), calibration, width=width, batch_size=batch_size, **options)
        points.append(Point(name, width, parameters(sliced), perplexity(sliced, evaluation, batch_size=batch_size)))
    return points
