"""Beyond the paper: what to leave of each block, so that the model has a given size at the least sum of costs.

Of a block all may be left, or all but some of its neurons, or nothing. What is left has a size and a cost (`rulers`);
both are assumed to add up. With a price for a parameter, each block can be decided by itself,

    argmin over what may be left of it:    cost + price * size

and no other model as small as the one that this makes costs less: Lagrange's multiplier, without derivatives (Everett
1963). A higher price leaves less. Bisection finds the two prices next to each other between which the wanted size lies;
what the one leaves too much, or the other too little, is made up for by single steps of neurons.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..architecture.blocks import Block
from ..architecture.modeling import SlicedForCausalLM
from ..architecture.network import Network, network
from ..checks import require_int, require_number
from ..measuring.cost import parameters
from ..measuring.shapes import sliced_config
from .neurons import common_neurons
from .rulers import LEAST, Cost


@dataclass(frozen=True)
class Sizes:
    """How many parameters a model has, and where."""

    total: int
    blocks: list[int]
    per_neuron: list[int]  # of each block's MLP; 0 where there is none

    @property
    def elsewhere(self) -> int:
        """In embeddings and head."""
        return self.total - sum(self.blocks)


def sizes_of(net: Network, options: dict) -> Sizes:
    """Those of a dense network that is to be sliced so, counted without weights.

    Args:
        options: of `slice_model`, and such that sizes don't depend on the calibration set.
    """
    with torch.device("meta"):
        model = SlicedForCausalLM(sliced_config(net.model.config, **options))
    blocks = network(model).blocks
    return Sizes(parameters(model), [parameters(block) for block in blocks], [_per_neuron(block) for block in blocks])


def _per_neuron(block: Block) -> int:
    """What a neuron has: its rows in the linears that make it, with their biases, and its column in W_out.

    Of a mixture, one neuron of every expert.
    """
    if not block.neurons:
        return 0
    if experts := block.experts:
        own = [p for name, p in experts.named_parameters() if name != "down_proj_bias"]
        return sum(parameter.numel() for parameter in own) // block.neurons
    mlp = block.mlp_linears
    made = sum(r.weight.numel() + (0 if r.bias is None else r.bias.numel()) for r in mlp.readers)
    return (made + mlp.writer.weight.numel()) // mlp.neurons


@dataclass(frozen=True)
class Part:
    """What may be left of a block."""

    neurons: int | None  # None without an MLP
    cost: float  # of deleting the rest, in nats a token
    size: int  # in parameters
    dropped: bool = False  # nothing is left


@dataclass(frozen=True)
class Choice:
    """What is left of each block."""

    parts: list[Part]

    @property
    def cost(self) -> float:
        return sum(part.cost for part in self.parts)

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def neurons(self) -> list[int]:
        """Of every MLP that is left, as `slice_model` takes them."""
        return [part.neurons for part in self.parts if part.neurons is not None]

    @property
    def dropped(self) -> list[int]:
        """The numbers of the blocks that are left out."""
        return [number for number, part in enumerate(self.parts) if part.dropped]


def cheapest(
    sizes: Sizes, costs: list[Cost], target: float, slack: float, multiple: int, may_drop: Collection[int]
) -> Choice | None:
    """Of all models of at most `target` parameters, and more than `target - slack`, nearly the one that costs least;
    None where there is none.

    Args:
        costs: of each block's deletions.
        multiple: neurons are deleted until a multiple of this is left.
        may_drop: the numbers of the blocks that may be left out whole.
    """
    tables = [
        _parts(cost, size, each, multiple, number in may_drop)
        for number, (cost, size, each) in enumerate(zip(costs, sizes.blocks, sizes.per_neuron, strict=True))
    ]
    room = target - sizes.elsewhere

    def at(price: float) -> Choice:
        return Choice([min(parts, key=lambda part: part.cost + price * part.size) for parts in tables])

    low, high = -60.0, 20.0  # logarithms of the price, in nats for each parameter
    if at(math.exp(high)).size > room:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if at(math.exp(middle)).size <= room else (middle, high)
    # One price has a block more or less than the other, and room, or need of it, for neurons to make up.
    choices = [_fitted(tables, at(price), room) for price in (0.0, math.exp(low), math.exp(high))]
    near = [choice for choice in choices if choice and choice.size > room - slack]
    return min(near, key=lambda choice: choice.cost, default=None)


def _parts(cost: Cost, size: int, per_neuron: int, multiple: int, may_drop: bool) -> list[Part]:
    """All that may be left of a block of this size: with more and more neurons, whole, and perhaps nothing."""
    fewer = [
        Part(count, cost.of(count), size - (cost.neurons - count) * per_neuron)
        for count in range(0, cost.neurons, multiple)
    ]
    nothing = [Part(None, max(cost.dropped, LEAST), 0, dropped=True)] if may_drop else []
    return [*fewer, Part(cost.neurons or None, 0.0, size), *nothing]


def _fitted(tables: list[list[Part]], choice: Choice, room: float) -> Choice | None:
    """The same with fewer neurons until it fits into the room, and then with as many more as fit; each time where it is
    cheapest for the size. None where it never fits.
    """
    places = [parts.index(part) for parts, part in zip(tables, choice.parts, strict=True)]

    def chosen() -> Choice:
        return Choice([parts[place] for parts, place in zip(tables, places, strict=True)])

    def change(step: int, room: float) -> bool:
        used, found = chosen().size, []
        for number, (parts, place) in enumerate(zip(tables, places, strict=True)):
            if not 0 <= place + step < len(parts) or parts[place].dropped or parts[place + step].dropped:
                continue
            old, new = parts[place], parts[place + step]
            if used - old.size + new.size <= room:
                found.append(((new.cost - old.cost) / abs(new.size - old.size), number))
        if found:
            places[min(found)[1]] += step
        return bool(found)

    while chosen().size > room:
        if not change(-1, math.inf):
            return None
    while change(1, room):
        pass
    return chosen()


def neurons_for(model: PreTrainedModel, size: float, multiple: int = 8) -> float:
    """The fraction of every MLP's and expert's neurons without which a share `size` of the model's parameters is left,
    or just less.

    Raises:
        ValueError: they haven't so many parameters.
    """
    require_number("size", size, above=0, most=1)
    require_int("multiple", multiple)
    net = network(model)
    counts = common_neurons(net).values()
    theirs = sum(block.neurons * _per_neuron(block) for block in net.blocks) / parameters(model)
    fraction = (1 - size) / theirs
    left = [int((1 - fraction) * count + 1e-6) // multiple * multiple for count in counts]
    if min(left) <= 0:
        raise ValueError(
            f"all {' and '.join(map(str, counts))} neurons of each MLP are {theirs:.0%} of this model's parameters: "
            f"deleting neurons alone doesn't leave {size:.0%}"
        )
    return max(1 - kept / count for kept, count in zip(left, counts, strict=True))
