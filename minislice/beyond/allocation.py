"""Beyond the paper: what to leave of each block, so that the model has a given size at the least cost.

A block can stay whole, lose some of its neurons, or be dropped. Each of these parts has a size and a cost (`rulers`),
and both are assumed to add up. If a parameter has a price, each block can be decided by itself:

    argmin over the parts of a block:    cost + price * size

No model of the same size or smaller costs less: this is Lagrange's multiplier, without derivatives (Everett 1963). A
higher price leaves less. Bisection finds two neighbouring prices: one leaves too much, the other too little. From both,
neurons are deleted or put back in single steps until the size is right.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..architecture.blocks import Block
from ..architecture.modeling import without_memory
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
    """The sizes of a dense network after slicing with these options of `slice_model`, counted without weights."""
    model = without_memory(sliced_config(net.model.config, **options))
    blocks = network(model).blocks
    return Sizes(parameters(model), [parameters(block) for block in blocks], [_per_neuron(block) for block in blocks])


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


@dataclass(frozen=True)
class Part:
    """What may be left of a block."""

    neurons: int | None  # None without an MLP
    cost: float  # of deleting the rest, in nats a token
    size: int  # in parameters
    dropped: bool = False  # nothing is left


@dataclass(frozen=True)
class Choice:
    """What is left of each block; `neurons` and `dropped` as `slice_model` takes them."""

    parts: list[Part]
    cost = property(lambda self: sum(part.cost for part in self.parts))
    size = property(lambda self: sum(part.size for part in self.parts))
    neurons = property(lambda self: [part.neurons for part in self.parts if part.neurons is not None])
    dropped = property(lambda self: [number for number, part in enumerate(self.parts) if part.dropped])


def cheapest(
    sizes: Sizes, costs: list[Cost], target: float, slack: float, multiple: int, may_drop: Collection[int]
) -> Choice | None:
    """A model of at most `target` parameters and more than `target - slack`, at nearly the least cost, or None.

    The neurons left in an MLP are a multiple of `multiple`; `may_drop` has the blocks that may be dropped.
    """
    tables = [
        _parts(cost, size, per_neuron, multiple, number in may_drop)
        for number, (cost, size, per_neuron) in enumerate(zip(costs, sizes.blocks, sizes.per_neuron, strict=True))
    ]
    room = target - sizes.elsewhere

    def at(log_price: float) -> Choice:
        price = math.exp(log_price)
        return Choice([min(parts, key=lambda part: part.cost + price * part.size) for parts in tables])

    low, high = -60.0, 20.0  # of the price in nats for each parameter
    if at(high).size > room:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle).size <= room else (middle, high)
    # The models of these two prices differ in a block, seldom in more; neurons make up for the difference.
    choices = [_fitted(tables, at(log_price), room) for log_price in (-math.inf, low, high)]
    near = [choice for choice in choices if choice and choice.size > room - slack]
    return min(near, key=lambda choice: choice.cost, default=None)


def _parts(cost: Cost, size: int, per_neuron: int, multiple: int, may_drop: bool) -> list[Part]:
    """The parts of a block of this size: with more and more neurons, whole, and perhaps nothing."""
    fewer = [
        Part(count, cost.of(count), size - (cost.neurons - count) * per_neuron)
        for count in range(0, cost.neurons, multiple)
    ]
    nothing = [Part(None, max(cost.dropped, LEAST), 0, dropped=True)] if may_drop else []
    return [*fewer, Part(cost.neurons or None, 0.0, size), *nothing]


def _fitted(tables: list[list[Part]], choice: Choice, room: float) -> Choice | None:
    """The choice with fewer neurons until it fits into the room, then with as many more as fit; None if it never fits.

    Each step is taken in the block where it is cheapest for its size.
    """
    places = [parts.index(part) for parts, part in zip(tables, choice.parts, strict=True)]

    def chosen() -> Choice:
        return Choice([parts[place] for parts, place in zip(tables, places, strict=True)])

    def change(step: int, room: float) -> bool:
        used, found = chosen().size, []
        for number, (parts, place) in enumerate(zip(tables, places, strict=True)):
            old, new = parts[place], parts[place + step] if 0 <= place + step < len(parts) else None
            if new and not (old.dropped or new.dropped) and used - old.size + new.size <= room:
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
    """The fraction of every MLP's and expert's neurons to delete, so that a share `size` of the parameters is left."""
    require_number("size", size, above=0, most=1)
    require_int("multiple", multiple)
    net = network(model)
    counts = common_neurons(net).values()
    share = sum(block.neurons * _per_neuron(block) for block in net.blocks) / parameters(model)
    fraction = (1 - size) / share
    left = [int((1 - fraction) * count + 1e-6) // multiple * multiple for count in counts]
    if min(left) <= 0:
        raise ValueError(
            f"all {' and '.join(map(str, counts))} neurons of each MLP are {share:.0%} of this model's parameters: "
            f"deleting neurons alone doesn't leave {size:.0%}"
        )
    return max(1 - number / count for number, count in zip(left, counts, strict=True))
