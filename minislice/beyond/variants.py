"""Ways to make a model smaller, which `compare` compares at equal sizes.

A variant is a function of a trained model, calibration tokens, [sequences, tokens], a size and a dict. The size is the
fraction of the model's parameters that may be left (`cost.parameters` counts them). What a variant puts into the dict,
which is empty at first, it gets again for the next size of this model. It changes the model in place and returns it,
with at most so many parameters, as near to the size as it can:

- slicing has one width, a multiple of 8. It is chosen for the highest ranks that low-rank adapters can have
- every MLP keeps the same number of neurons, a multiple of 8
- depth removal deletes whole layers; the first 2,048 calibration tokens choose them (why: data/results/README.md)
- the mixture of `budget` is within 1% of the size

A size that can't be reached is a ValueError. To add a variant, add an entry to `VARIANTS`.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..architecture.modeling import without_memory
from ..measuring.cost import parameters
from ..measuring.shapes import sliced_config
from .budget import compress, neurons_for, plan_compression
from .depth import delete_layers
from .neurons import delete_neurons
from .rulers import prices
from .slicing import slice_model

Variant = Callable[[PreTrainedModel, Tensor, float, dict], PreTrainedModel]
MULTIPLE = 8  # of the widths
DEPTH_TOKENS = 2048


def sliced(model: PreTrainedModel, tokens: Tensor, size: float, known: dict, **options) -> PreTrainedModel:
    """Slicing with these options; all boundaries that aren't whole have one width."""
    width = width_of_size(model.config, size * parameters(model), **options)
    return slice_model(model, tokens, width=width, **options)


def width_of_size(config: PreTrainedConfig, most: float, **options) -> int:
    """The largest width at which slicing leaves `most` parameters or fewer, found without weights."""

    def size(width: int) -> int:
        return parameters(without_memory(sliced_config(config, width=width, **options)))

    D = config.hidden_size
    if size(D) <= most:  # beside a tied head D needs no adapters; a narrower model has two full ones, and may be larger
        return D
    widths = range(MULTIPLE, D, MULTIPLE)
    fitting = bisect_right(widths, most, key=size)
    if fitting == 0:
        raise ValueError(f"{int(most):,} parameters can't be reached: a width of {MULTIPLE} leaves {size(MULTIPLE):,}")
    return widths[fitting - 1]


def fewer_neurons(model: PreTrainedModel, tokens: Tensor, size: float, known: dict) -> PreTrainedModel:
    """The same number of neurons deleted from every MLP; the architecture stays the same."""
    return delete_neurons(model, tokens, neurons=neurons_for(model, size))


def fewer_layers(model: PreTrainedModel, tokens: Tensor, size: float, known: dict) -> PreTrainedModel:
    """Layers deleted; the longest order in which they were deleted so far is known."""
    order = known.get("order", [])
    delete_layers(model, tokens[: -(-DEPTH_TOKENS // tokens.shape[1])], size=size, known=order)
    known["order"] = max(order, model.deleted_layers, key=len)
    return model


def mixed(model: PreTrainedModel, tokens: Tensor, size: float, known: dict, **options) -> PreTrainedModel:
    """What `compress` chooses, with its other options; the prices are known, which serve every size."""
    if "prices" not in known:
        known["prices"] = prices(model, tokens)
    plan = plan_compression(model, tokens, size=size, known=known["prices"])
    return compress(model, tokens, plan=plan, **options)


VARIANTS: dict[str, Variant] = {
    "slicegpt": partial(sliced, adapter="full", head="own"),  # the paper's own
    "aligned": partial(sliced, adapter="none", head="own"),  # aligned bases, no adapters
    "tied": partial(sliced, adapter="low-rank", head="tied"),  # a tied head stays tied
    "repaired": partial(sliced, adapter="none", repair=True),  # W_out makes up for what is lost; tied where it was
    "neurons": fewer_neurons,  # the inner width alone
    "depth": fewer_layers,
    "mixed": mixed,  # width, neurons and blocks, by what each costs
    "fisher": partial(mixed, fisher=True),  # and neurons are scored by what they mean to the loss
    "reconstructed": partial(mixed, reconstruct=True),  # and all matrices of a block move
}
