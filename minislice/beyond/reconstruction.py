"""Beyond the paper: all matrices of a block move, not W_out alone, so that it makes up for what was lost before it.

Once neurons are deleted and W_out is solved for again (`inner`), the matrices that make what W_out reads are still the
trained ones. With x_t the dense network's signal behind the block, z_t the sliced signal before it, and theta all of
the block's parameters:

    theta  <-  argmin  sum_t || x_t - z_t P^T - sigma(RMSNorm(z_t) W_in + b_in) W_out - b_out ||^2 / rms(x_t)^2

There are no labels and there is no loss of the language model: every gradient stays inside one block. Adam takes the
steps; a step changes a matrix by at most about `RATE` of its rms, and less and less, as a cosine does.

So many parameters can learn the calibration set by heart. So every eighth batch (of fewer, the last) is held out,
already when W_out is solved for, and the block gets the parameters with the least error there. The solved ones compete
too: on the batches that are held out, the block can't become worse.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..architecture.blocks import Block
from ..calibration import Calibration, Signal
from .inner import inverse_rms

PASSES, STEPS = 4, 120  # over the batches that are learned from; at least so many steps
RATE = 0.02  # of each matrix's rms
HELD_OUT = 8  # every eighth batch
NOTHING = 1e-9  # of the signal's energy: a smaller error is rounding


class Part(Signal):
    """Some batches of a signal."""

    def __init__(self, signal: Signal, numbers: Sequence[int]):
        self.signal, self.numbers = signal, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        return self.signal[self.numbers[index]]


def split(calibration: Calibration, *signals: Signal | None) -> list[tuple]:
    """The part of a calibration set that is learned from, and the part that is held out, each with its signals.

    With a single batch nothing is held out.
    """
    numbers = range(len(calibration.batches))
    held_out = numbers[HELD_OUT - 1 :: HELD_OUT] or numbers[1:][-1:]
    parts = []
    for of_part in ([number for number in numbers if number not in held_out], held_out):
        part = copy.copy(calibration)
        part.batches, part.contexts = (
            [every[n] for n in of_part] for every in (calibration.batches, calibration.contexts)
        )
        parts.append((part, *(signal and Part(signal, of_part) for signal in signals)))
    return parts


def reconstruct(block: Block, layer: int, P: Tensor | None, learned: tuple, held_out: tuple) -> None:
    """Move all parameters of a block, in place; its W_out has all D columns.

    If several processes share the calibration set, the first one's share decides.

    Args:
        P: as in `inner.block_moments`.
        learned, held_out: parts of a calibration set, each with Z and the dense network's signal behind the block.
    """
    parameters = [parameter for parameter in block.parameters() if parameter.numel()]

    def error(part: tuple, index: int) -> Tensor:
        """Of a batch: the mean over its tokens of what is missing, as a share of the signal's energy."""
        calibration, Z, dense = part
        z, x, mask = Z[index], dense[index], calibration.batches[index].mask
        y = block.branch(z, **calibration.contexts[index][layer]) + (z if P is None else z @ P.T.to(z))
        share = ((x - y) * inverse_rms(x.flatten(0, 1)).view(*x.shape[:2], 1)).square().mean(-1)
        return (share if mask is None else share[mask]).mean()

    def held_out_error() -> float:
        return sum(error(held_out, index).item() for index in range(len(held_out[1])))

    least = held_out_error()
    if least > NOTHING * len(held_out[1]):
        best = [parameter.clone() for parameter in parameters]
        for _ in descend(parameters, [lambda index=index: error(learned, index) for index in range(len(learned[1]))]):
            if (found := held_out_error()) < least:
                least, best = found, [parameter.clone() for parameter in parameters]
        for parameter, values in zip(parameters, best, strict=True):
            parameter.copy_(values)
    for parameter, values in zip(parameters, learned[0].agreed(*parameters), strict=True):
        parameter.copy_(values)


def descend(parameters: list[Tensor], errors: list[Callable[[], Tensor]]) -> Iterator[None]:
    """Adam takes one step for each of these errors, in random order, again and again; yields behind each pass.

    Adam's numbers and a copy of the parameters are float32 or wider: in bfloat16 small steps would be lost.
    """
    passes = max(PASSES, math.ceil(STEPS / len(errors)))
    masters = [p.detach().to(torch.promote_types(p.dtype, torch.float32)).clone() for p in parameters]
    groups = [{"params": [master], "lr": RATE * master.square().mean().sqrt().item()} for master in masters]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.95))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, passes * len(errors))
    generator, trained = torch.Generator().manual_seed(0), [parameter.requires_grad for parameter in parameters]
    for _ in range(passes):
        for place in torch.randperm(len(errors), generator=generator).tolist():
            for parameter in parameters:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                gradients = torch.autograd.grad(errors[place](), parameters, allow_unused=True)
            for parameter, master, gradient, before in zip(parameters, masters, gradients, trained, strict=True):
                parameter.requires_grad_(before)
                master.grad = None if gradient is None else gradient.to(master.dtype)
            adam.step()
            cosine.step()
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.copy_(master)
        yield
