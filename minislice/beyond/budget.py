"""Beyond the paper: one budget for everything that can be deleted.

A narrower signal (`slicing`), fewer neurons in each MLP (`neurons`), dropped blocks, or a mixture of these make a
model of a given size. `rulers` measures what each costs. A block can stay whole, lose some of its neurons, or be
dropped. Each of these parts has a size and a cost, and both are assumed to add up. If a parameter has a price, each
block can be decided by itself:

    argmin over the parts of a block:    cost + price * size

No model of the same size or smaller costs less: this is Lagrange's multiplier, without derivatives (Everett 1963). A
higher price leaves less. Bisection finds two neighbouring prices: one leaves too much, the other too little. From both,
neurons are deleted or put back in single steps until the size is right. This is done for each width of the signal; the
width with the least total cost wins.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import NamedTuple

from transformers import PreTrainedModel

from ..architecture.blocks import Block
from ..architecture.modeling import without_memory
from ..architecture.network import Network, network
from ..checks import is_several, require, require_flag, require_int, require_number
from ..corpus.batches import Tokens, listed
from ..measuring.cost import parameters
from ..measuring.shapes import sliced_config
from .neurons import common_neurons
from .rulers import OPTIONS, Cost, Prices, prices, rounded
from .slicing import slice_model

WIDTHS = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)  # of D: candidates
TOLERANCE = 0.01  # the model may be smaller than asked for by this share of the dense size


@dataclass(frozen=True)
class Plan:
    """What to delete, and its expected cost."""

    options: dict  # of `slice_model`
    parameters: int  # left
    dense_parameters: int
    cost: float  # expected divergence from the dense model's predictions, in nats a token
    prices: Prices

    def __str__(self) -> str:
        k, neurons, dropped = (self.options[name] for name in ("width", "neurons", "drop"))
        costs, D, share = self.prices.blocks, max(self.prices.widths), self.parameters / self.dense_parameters
        trained = [cost.neurons for number, cost in enumerate(costs) if cost.neurons and number not in dropped]
        return (
            f"parameters: {self.parameters:,} of {self.dense_parameters:,} ({share:.1%})\n"
            f"expected cost: a divergence of {self.cost:.3f} nats a token from the dense model's predictions\n"
            f"signal: {f'{k} of {D} dimensions' if k < D else 'whole'}\n"
            f"neurons: {sum(neurons):,} of {sum(trained):,} in {len(trained)} MLPs: {' '.join(map(str, neurons))}\n"
            f"blocks left out, of {len(costs)}: {' '.join(map(str, dropped)) or 'none'}"
        )


class Part(NamedTuple):
    """What may be left of a block."""

    neurons: int | None  # 0 without an MLP; None: the block is dropped
    cost: float  # of deleting the rest, in nats a token
    size: int  # in parameters


def cost_of(parts: Iterable[Part]) -> float:
    return sum(part.cost for part in parts)


def size_of(parts: Iterable[Part]) -> int:
    return sum(part.size for part in parts)


def tables_of(
    net: Network, options: dict, costs: list[Cost], multiple: int, may_drop: Collection[int]
) -> tuple[int, list[list[Part]]]:
    """How many parameters slicing with these options of `slice_model` leaves outside the blocks, and what may be left
    of each block: more and more neurons, the whole, and perhaps nothing.

    Args:
        net: the dense network; parameters are counted without weights.
        multiple: of the neurons that are left in an MLP.
        may_drop: the numbers of the blocks that may be dropped.
    """
    model, tables = without_memory(sliced_config(net.model.config, **options)), []
    elsewhere = parameters(model)
    for number, (block, cost) in enumerate(zip(network(model).blocks, costs, strict=True)):
        size, per_neuron = parameters(block), _per_neuron(block)
        counts = [*range(0, cost.neurons, multiple), cost.neurons]
        parts = [Part(count, cost.of(count), size - (cost.neurons - count) * per_neuron) for count in counts]
        tables.append([*parts, Part(None, cost.of(None), 0)] if number in may_drop else parts)
        elsewhere -= size
    return elsewhere, tables


def _per_neuron(block: Block) -> int:
    """The parameters of a neuron, or of one in every expert: columns of W_in, their biases, and a row of W_out."""
    if not block.neurons:
        return 0
    if block.is_mixture:
        tensors = [tensor for name, tensor in block.experts.named_parameters() if name != "down_proj_bias"]
    else:
        mlp = block.mlp_linears
        tensors = [mlp.writer.weight, *(tensor for reader in mlp.readers for tensor in (reader.weight, reader.bias))]
    return sum(tensor.numel() for tensor in tensors if tensor is not None) // block.neurons


def cheapest(tables: list[list[Part]], room: float, slack: float) -> list[Part] | None:
    """A part of each block: at most `room` parameters together and more than `room - slack`, at nearly the least cost.

    None if there is none.
    """

    def at(log_price: float) -> list[Part]:
        price = math.exp(log_price)
        return [min(parts, key=lambda part: part.cost + price * part.size) for parts in tables]

    low, high = -60.0, 20.0  # of the price in nats for each parameter
    if size_of(at(high)) > room:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if size_of(at(middle)) <= room else (middle, high)
    # The models of these two prices differ in a block, seldom in more; neurons make up for the difference.
    choices = [_fitted(tables, at(log_price), room) for log_price in (-math.inf, low, high)]
    return min((choice for choice in choices if choice and size_of(choice) > room - slack), key=cost_of, default=None)


def _fitted(tables: list[list[Part]], choice: list[Part], room: float) -> list[Part] | None:
    """The choice with fewer neurons until it fits into the room, then with as many more as fit; None if it never fits.

    Each step is taken in the block where it is cheapest for its size.
    """
    places = [parts.index(part) for parts, part in zip(tables, choice, strict=True)]

    def chosen() -> list[Part]:
        return [parts[place] for parts, place in zip(tables, places, strict=True)]

    def change(step: int, room: float) -> bool:
        used, found = size_of(chosen()), []
        for number, (parts, place) in enumerate(zip(tables, places, strict=True)):
            old, new = parts[place], parts[place + step] if 0 <= place + step < len(parts) else None
            if new and None not in (old.neurons, new.neurons) and used - old.size + new.size <= room:
                found.append(((new.cost - old.cost) / abs(new.size - old.size), number))
        if found:
            places[min(found)[1]] += step
        return bool(found)

    while size_of(chosen()) > room:
        if not change(-1, math.inf):
            return None
    while change(1, room):
        pass
    return chosen()


def neurons_for(model: PreTrainedModel, size: float) -> float:
    """The fraction of every MLP's and expert's neurons to delete, so that a share `size` of the parameters is left."""
    require_number("size", size, above=0, most=1)
    net = network(model)
    counts = common_neurons(net).values()
    share = sum(block.neurons * _per_neuron(block) for block in net.blocks) / parameters(model)
    left = [int((1 - (1 - size) / share) * count + 1e-6) // 8 * 8 for count in counts]  # as `delete_neurons`
    if min(left) <= 0:
        raise ValueError(
            f"all {' and '.join(map(str, counts))} neurons of each MLP are {share:.0%} of this model's parameters: "
            f"deleting neurons alone doesn't leave {size:.0%}"
        )
    return max(1 - number / count for number, count in zip(left, counts, strict=True))


def plan_compression(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    size: float = 0.8,
    widths: Sequence[float] = WIDTHS,
    drop: bool = True,
    multiple: int = 8,
    known: Prices | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Plan:
    """Decide what to delete from a dense model, which stays as it is, to leave a share `size` of its parameters.

    Args:
        widths: candidates for the signal's width, as shares of D.
        drop: whether whole blocks may be dropped.
        multiple: of the neurons left in an MLP, and of widths.
        known: prices measured before, for another size.

    Raises:
        ValueError: a size that can't be reached within 1%; and as `prices`.
    """
    require_number("size", size, above=0, below=1)
    require_int("multiple", multiple)
    require_flag("drop", drop)
    require(is_several(widths) and len(widths) > 0, "widths", "a list of shares of the model's width", widths)
    for share in widths:
        require_number("widths", share, above=0, most=1)
    require(isinstance(known, (Prices, NoneType)), "known", "the `prices` of an earlier plan", known)
    if known is None:
        settings = {"multiple": multiple, "batch_size": batch_size, "progress": progress}
        known = prices(model, tokens, attention_mask, narrower=min(widths) < 1, **settings)
    net, dense = network(model), parameters(model)
    if [cost.neurons for cost in known.blocks] != [block.neurons for block in net.blocks]:
        raise ValueError("these prices are another model's: its blocks differ; leave `known` out")
    D, plans = net.trained_width, []
    may_drop = {*range(len(net.blocks))} - net.needed_by_cache if drop else set()
    for k in sorted({D if share == 1 else rounded(share * D, multiple) for share in widths}, reverse=True):
        # Only the last block may lead to the head's full width: from the block before, the adapter would be larger.
        needed = {len(net.blocks) - 1} if k < D else set()
        elsewhere, tables = tables_of(net, {**OPTIONS, "width": k}, known.blocks, multiple, may_drop - needed)
        if parts := cheapest(tables, size * dense - elsewhere, TOLERANCE * dense):
            drop = [number for number, part in enumerate(parts) if part.neurons is None]
            neurons = [parts[n].neurons for n, block in enumerate(net.blocks) if block.neurons and n not in drop]
            options = {**OPTIONS, "width": k, "neurons": neurons, "drop": drop}
            cost = cost_of(parts) + known.of_width(k)
            plans.append(Plan(options, elsewhere + size_of(parts), dense, cost, known))
    if not plans:
        raise ValueError(f"nothing that can be deleted leaves {size:.0%} of {dense:,} parameters, to {TOLERANCE:.0%}")
    return min(plans, key=lambda plan: (plan.cost, plan.options["width"]))


def compress(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    plan: Plan | None = None,
    reconstruct: bool = False,
    fisher: bool = False,
    batch_size: int = 8,
    progress: bool = False,
    **options,
) -> PreTrainedModel:
    """Delete what costs least until a share of a model's parameters is left, in place.

        minislice.compress(model, tokens, size=0.8)

    Args:
        plan: what `plan_compression` returned; without one it is called with `options`, such as `size` (0.8).
        reconstruct, fisher: as in `SlicingOptions`; the plan is the same.

    Returns the same model object, a sliced one.
    """
    require(isinstance(plan, (Plan, NoneType)), "plan", "what `plan_compression` returned", plan)
    if plan and options:
        raise ValueError(f"the plan has decided on these already: leave {', '.join(options)} out, or the plan")
    tokens = listed(tokens, "tokens")
    attention_mask = None if attention_mask is None else listed(attention_mask, "the attention mask")
    settings = {"batch_size": batch_size, "progress": progress}
    plan = plan or plan_compression(model, tokens, attention_mask, **settings, **options)
    settings |= {"reconstruct": reconstruct, "fisher": fisher, **plan.options}
    return slice_model(model, tokens, attention_mask, **settings)
