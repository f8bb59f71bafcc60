"""Where the loss comes from: the signal of a sliced network beside the dense one's, boundary by boundary.

A sliced signal has another basis, so what is compared is what no rotation changes: the inner products of the tokens'
rows, X X^T. The rows are what a block reads, the norm's output, without their mean: in real language models half of the
energy has the same direction in every token, and slicing doesn't touch it.
"""

from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from ..architecture.network import inference, network


def signals(
    model: PreTrainedModel, ids: Int64[Tensor, "sequences tokens"]
) -> list[Float[Tensor, "sequences tokens _"]]:
    """The signal X at every boundary, blocks + 1 of them: Algorithm 1, one block after the other."""
    net = network(model)
    with inference(model):
        x, contexts = net.embed(ids.to(model.device))
        boundaries = [x]
        for block in net.blocks:
            boundaries.append(block(boundaries[-1], **contexts[block.layer]))
    return boundaries


def inner_products(x: Float[Tensor, "sequences tokens k"]) -> Float[Tensor, "sequences tokens tokens"]:
    """X X^T of each sequence, its rows less their mean."""
    centred = x - x.mean(1, keepdim=True)
    return centred @ centred.mT


def signal_errors(
    dense: PreTrainedModel, sliced: PreTrainedModel, ids: Int64[Tensor, "sequences tokens"]
) -> list[float]:
    """||Z Z^T - X X^T|| / ||X X^T|| at every boundary: 0 where Z is X, rotated; 1 where nothing of X is left.

    X is the dense signal after its norm. The dense model is fused, so that its norms have no weights. A boundary
    before a dropped block is left out.
    """
    net, sliced_net, dense_signals, errors = network(dense), network(sliced), signals(dense, ids), []
    if not net.is_fused or net.is_sliced or net.dropped:
        raise ValueError("compare with the dense model after minislice.fuse, before it is sliced")
    boundaries = [*(block.number for block in sliced_net.blocks), len(net.blocks)]
    for boundary, z, sliced_norm in zip(boundaries, signals(sliced, ids), sliced_net.norms, strict=True):
        exact = inner_products(net.norms[boundary](dense_signals[boundary]))
        errors.append(((inner_products(sliced_norm(z)) - exact).norm() / exact.norm()).item())
    return errors
