"""Beyond the paper: all matrices of a block move, not W_out alone, so that it makes up for what was lost before it.

Once neurons are deleted and W_out is solved for again (`inner`), the matrices that make what W_out reads are still the
trained ones. With x_t the dense network's signal after the block, z_t the sliced signal before it, and theta all of
the block's parameters:

    theta  <-  argmin  sum_t || x_t - z_t P^T - sigma(RMSNorm(z_t) W_in + b_in) W_out - b_out ||^2 / rms(x_t)^2

There are no labels and no loss of the language model: every gradient stays inside one block. Adam takes a step for each
batch (smaller ones take less time): at most about `RATE` of a matrix's rms, and less and less, as a cosine does.

So many parameters can learn the calibration set by heart. So every eighth batch (of fewer, the last) is held out, and
batches are smaller where there would be fewer than eight. W_out isn't solved for on these batches either. The block
gets the parameters with the least error there, and the solved ones compete too: on the batches that are held out, the
block can't become worse.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..architecture.blocks import Block
from .inner import Walk, inverse_rms

PASSES, STEPS = 4, 120  # over the batches that are learned from; at least so many steps
RATE = 0.02  # of each matrix's rms
NOTHING = 1e-9  # of the signal's energy: a smaller error is rounding


def reconstruct(block: Block, learned: Walk, held_out: Walk) -> None:
    """Move all parameters of a block, in place. The two parts are of a walk with a dense signal that has reached it.

    If several processes share the calibration set, the first one's share decides.
    """
    parameters = [parameter for parameter in block.parameters() if parameter.numel()]

    def error(walk: Walk, index: int) -> Tensor:
        """Of a batch: the mean over its tokens of what is missing, as a share of the signal's energy."""
        (y, x), mask = walk.outputs(block, index), walk.calibration.batches[index].mask
        share = ((x - y) * inverse_rms(x.flatten(0, 1)).view(*x.shape[:2], 1)).square().mean(-1)
        return share.mean() if mask is None else share[mask].sum() / mask.sum().clamp(min=1)

    def held_out_error() -> float:
        return sum(error(held_out, index).item() for index in held_out.numbers)

    least, best = held_out_error(), [parameter.clone() for parameter in parameters]
    if least > NOTHING * len(held_out.numbers):
        for _ in descend(parameters, [lambda index=index: error(learned, index) for index in learned.numbers]):
            if (found := held_out_error()) < least:
                least, best = found, [parameter.clone() for parameter in parameters]
    for parameter, values in zip(parameters, learned.calibration.agreed(*best), strict=True):
        parameter.copy_(values)


def descend(parameters: list[Tensor], errors: list[Callable[[], Tensor]]) -> Iterator[None]:
    """Adam takes one step for each of these errors, in random order, again and again; yields after each pass.

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
