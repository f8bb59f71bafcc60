"""Rounding to a few bits, to see what a rotation does for it: in the model's dtype, nothing is stored in bits.

QuaRot (Ashkboos et al. 2024) and SpinQuant (Liu et al. 2024) rotate a model before they round it. A row is rounded to
whole multiples of one step, and its largest entry decides the step: an outlier makes it coarse for all the others.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Generator, Tensor

from ..architecture.linears import Linear
from ..architecture.network import Network

WHERE = ("attention's input", "heads' output", "MLP's input", "neurons")  # what the four kinds of linears read
NEURONS = WHERE[3]


def rounded(x: Tensor, bits: int) -> Tensor:
    """Each row of x, rounded to the nearest of 2^bits - 1 equidistant values between minus and plus its largest."""
    step = x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, (x / step).round() * step, x)


def peak(x: Tensor) -> Tensor:
    """Of each row, the largest entry over the root mean square: 1 if all are equal, sqrt(D) if one is alone."""
    return x.abs().amax(-1) / x.square().mean(-1).sqrt().clamp(min=torch.finfo(x.dtype).tiny)


def linears_by_input(net: Network) -> dict[str, list[Linear]]:
    """The linears of all blocks by what they read; in a parallel layer attention's input is the MLP's as well."""
    sides = {("attention", 0): WHERE[0], ("attention", 1): WHERE[1], ("mlp", 0): WHERE[2], ("mlp", 1): WHERE[3]}
    found = {where: [] for where in WHERE}
    for block in net.blocks:
        for side, linears in enumerate((block.readers, block.writers)):
            for name, linear in linears.items():
                found[sides[name.split(".")[0], side]].append(linear)
    return found


@contextmanager
def inputs_become(linears: Sequence[Linear], function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it is open, each linear reads `function` of its input."""
    with ExitStack() as hooks:
        for linear in linears:
            change = lambda module, inputs: (function(inputs[0]), *inputs[1:])  # noqa: E731
            hooks.enter_context(getattr(linear, "module", linear).register_forward_pre_hook(change))
        yield


@torch.no_grad()
def round_weights(net: Network, bits: int) -> None:
    """Round the weights of all blocks, each row of `nn.Linear`'s matrix with a step of its own, in place."""
    for linear in itertools.chain(*linears_by_input(net).values()):
        linear.weight.copy_(rounded(linear.weight, bits))


def hadamard(size: int, generator: Generator) -> Tensor:
    """An orthogonal matrix whose entries all have the size 1 / sqrt(size), in float64; its rows have random signs.

    It is a Kronecker product of matrices of order 12 (Paley's, from the squares modulo 11) and 2 (Sylvester's).

    Raises:
        ValueError: the size is no such product.
    """
    character = torch.tensor([0, 1, -1, 1, 1, 1, -1, -1, -1, 1, -1])  # 1 for the squares 1, 3, 4, 5 and 9
    paley = torch.eye(12, dtype=torch.float64)
    paley[0, 1:], paley[1:, 0] = 1, -1
    paley[1:, 1:] += character[(torch.arange(11)[:, None] - torch.arange(11)) % 11]
    orders = {12: paley, 2: torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)}
    left, H = size, torch.ones(1, 1, dtype=torch.float64)
    for order, matrix in orders.items():
        while left % order == 0:
            left, H = left // order, torch.kron(H, matrix)
    if left != 1:
        raise ValueError(f"can't make a Hadamard matrix of order {size}: it must be a product of 12s and 2s")
    signs = torch.randint(2, (size, 1), generator=generator) * 2 - 1
    return signs * H / size**0.5
