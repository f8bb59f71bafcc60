"""What a symmetry is, and the places at which one acts, as the parts of matrices that it changes there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from ..architecture.linears import Linear
from ..architecture.network import Network


class Symmetry:
    """What all symmetries have in common. `group` is the group at one place."""

    name: str
    group: str
    use: str
    of_logits = True  # False: of the probabilities alone

    def places(self, net: Network) -> list[Any]:
        """Where it may act."""
        return [net]

    def freedom(self, place: Any) -> int | str:
        """The number of free parameters at a place, 0 for a finite group; or why it doesn't act there."""
        return 0

    element: Callable[[Any, Generator], Any]  # of a place: a random element of the group there
    act: Callable[[Any, Any], None]  # change the weights at a place by an element, in place


@dataclass(frozen=True)
class Part:
    """Some rows of a linear with their biases, columns of a linear that writes, or entries of a vector."""

    tensors: list[Tensor]  # the matrix (transposed if these are columns), its bias, or a norm's scale
    numbers: Tensor  # of the rows

    def multiply(self, matrix: Tensor) -> None:
        """Replace the rows by matrix times the rows, in place."""
        for tensor in self.tensors:
            tensor[self.numbers] = matrix @ tensor[self.numbers]

    def scale(self, factors: Tensor) -> None:
        """Multiply each row by its factor, in place."""
        for tensor in self.tensors:
            tensor[self.numbers] *= factors.view(-1, *[1] * (tensor.ndim - 1))

    def reorder(self, order: Tensor) -> None:
        """Row i becomes what row order[i] was, in place."""
        for tensor in self.tensors:
            tensor[self.numbers] = tensor[self.numbers[order]]


def rows_of(linear: Linear, numbers: Tensor) -> Part:
    return Part([tensor for tensor in (linear.weight, linear.bias) if tensor is not None], numbers)


def columns_of(matrix: Tensor, numbers: Tensor) -> Part:
    return Part([matrix.T], numbers)


def exchange(places: Sequence[Sequence[Part]], order: Sequence[int]) -> None:
    """The parts of place i become what those of place order[i] were, in place."""
    before = [[tensor[part.numbers] for part in parts for tensor in part.tensors] for parts in places]
    for parts, source in zip(places, order, strict=True):
        rows = iter(before[source])
        for part in parts:
            for tensor in part.tensors:
                tensor[part.numbers] = next(rows)


@dataclass(frozen=True)
class Head:
    """A query, and the columns of W_out that read what it finds."""

    query: Part
    output: Part
    others: list[Part]  # this head's own scale of a norm, its sink


@dataclass(frozen=True)
class Group:
    """A key and a value, and the heads that share them."""

    key: Part
    value: Part
    heads: list[Head]
    others: list[Part]  # the key's own scale of a norm


@dataclass(frozen=True)
class Attention:
    """The attention of a block; every head has `size` dimensions."""

    groups: list[Group]
    size: int
    pairs: Tensor  # [pairs, 2]: the dimensions of a key that RoPE turns together
    unturned: Tensor  # the other dimensions
    norms: list[list[Part]]  # scales of the norms of queries and of keys: one for all heads, or one for each; or empty
    clips: bool  # whether queries, keys and values are cut off at a bound
    has_sinks: bool  # whether weights sum to less than 1
    has_slopes: bool  # whether scores depend on the distance alone, too (ALiBi)
    rounds: bool  # whether it computes in float32 somewhere, whatever its dtype


@dataclass(frozen=True)
class Scalable:
    """Rows of W_in: if what they give is multiplied by c > 0, the neurons are multiplied by c^power."""

    rows: Part
    power: int
    signed: bool  # for c < 0 too, as the `up` of a gated neuron


@dataclass(frozen=True)
class Neurons:
    """The neurons of an MLP, or of one expert."""

    count: int
    made: list[Part]  # rows of W_in: one part, or two with a gate
    read: Part  # columns of W_out
    alike: bool  # whether all compute the same function of their inputs
    scalable: list[Scalable]
