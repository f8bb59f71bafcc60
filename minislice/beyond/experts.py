"""Beyond the paper: the inner side of a mixture of experts, as `inner` has that of an MLP.

Every expert is an MLP of its own, with a C of its own: over the tokens that the router sends there, times the weights
that the router gives them.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ..architecture.blocks import Block
from ..architecture.linears import ExpertsWriter, set_weight
from ..architecture.mixtures import neurons_of
from ..architecture.neurons import keep_experts_neurons
from ..calibration import not_finite
from ..pca import RUN
from ..precision import without_tf32
from .inner import inverse_rms
from .walk import Walk


def block_moments(walk: Walk, block: Block) -> tuple[Float64[Tensor, "experts inner inner"], None]:
    """C of each expert; arguments and errors as in `inner.block_moments`.

    There is no B: no single expert is to blame for what is missing behind a mixture. The C of all experts are in memory
    at once, 13 GB for a layer of Mixtral 8x7B.
    """
    experts, calls, ones = block.experts, [], block.experts.has_bias
    total = walk.Z[0].new_zeros(experts.num_experts, *[block.neurons + ones] * 2, dtype=torch.float64)
    hook = experts.register_forward_pre_hook(lambda module, args: calls.append(args))
    try:
        for index in walk.numbers:
            y, wanted = walk.behind(block, index)
            batch = walk.calibration.batches[index]
            x, chosen, weights = calls.pop()
            weights = weights * inverse_rms(wanted.flatten(0, 1))
            if batch.mask is not None:
                weights = weights * batch.mask.flatten()[:, None]
            for expert in chosen.unique().tolist():
                token, place = (chosen == expert).nonzero(as_tuple=True)
                h = neurons_of(experts, expert, x[token])
                h = torch.cat([h, h.new_ones(len(h), int(ones))], dim=1).to(weights) * weights[token, place, None]
                with without_tf32():
                    for rows in h.split(RUN):
                        total[expert] += rows.T @ rows
            if not torch.isfinite(total.sum()):
                raise ValueError(not_finite(y, batch, f"block {block.number}"))
    finally:
        hook.remove()
    return walk.calibration.summed(total), None


def output_matrix(block: Block) -> Float64[Tensor, "experts inner D"]:
    """W_out of each expert; the last row is its bias, if it has one."""
    matrices = ExpertsWriter(block.experts).matrices().mT.double()
    if not block.experts.has_bias:
        return matrices
    return torch.cat([matrices, block.experts.down_proj_bias[:, None].double()], dim=1)


def sides(
    block: Block, C: Float64[Tensor, "experts n n"]
) -> list[tuple[Float64[Tensor, "n n"], Float64[Tensor, "n D"], slice]]:
    """C, W_out, and where the neurons are among the inner dimensions, of each expert."""
    return [(own, W, slice(block.neurons)) for own, W in zip(C, output_matrix(block), strict=True)]


def keep_inner(block: Block, kept: Int64[Tensor, "experts kept"], W: Float64[Tensor, "experts kept D"]) -> None:
    """Delete all other inner dimensions of each expert, in place, and give it this W_out."""
    keep_experts_neurons(block.experts, kept[:, : kept.shape[1] - block.experts.has_bias])  # a bias is the last one
    set_weight(ExpertsWriter(block.experts), W.permute(2, 0, 1).flatten(1))
