"""Section 3.2: every norm becomes the RMSNorm without weights; the rest of it moves into its neighbours.

Eq. 1 takes a LayerNorm apart (alpha its scale, beta its shift, M = I - 1/D 1 1^T subtracts a row's mean):

    LayerNorm(X) = RMSNorm(X M) diag(alpha) sqrt(D) + 1 beta^T

- alpha and beta belong to whoever reads the norm:  W_in <- diag(alpha) W_in,  b_in <- b_in + beta W_in
- M belongs to whoever wrote the signal:            W_embd <- W_embd M,  W_out <- W_out M,  b_out <- b_out M

LLaMA's norm is an RMSNorm with an alpha: no M, no beta. (The sqrt(D) is part of `blocks.RMSNorm`.)
"""

import copy
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from .architecture.blocks import Block, RMSNorm, set_weight
from .architecture.network import Network, network

ROWS = 4096  # of a matrix that are in float64 at one time: a vocabulary has many


def in_float64(
    product: Callable[[Float64[Tensor, "some D"]], Float64[Tensor, "some k"]], W: Float[Tensor, "rows D"]
) -> Float[Tensor, "rows k"]:
    """The product of every row of W, computed in float64, in W's dtype."""
    result = None
    for start in range(0, len(W), ROWS):
        rows = product(W[start : start + ROWS].double())
        if result is None:
            result = W.new_empty(len(W), rows.shape[1])
        result[start : start + ROWS] = rows
    return result


def subtract_mean(weight: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """W M: subtract from every row its mean (eq. 1)."""
    rows = weight.reshape(-1, weight.shape[-1])
    return in_float64(lambda some: some - some.mean(-1, keepdim=True), rows).view_as(weight)


def fuse_into(norm: nn.Module, linear: nn.Linear) -> None:
    """Move the norm's scale and shift into a linear that reads it, in place; products in float64 (section 3.2).

    A linear without a bias gets one where the norm has a shift.
    """
    weight, bias = linear.weight, linear.bias
    shift = getattr(norm, "bias", None)
    if shift is not None:
        added = torch.cat([rows.double() @ shift.double() for rows in weight.split(ROWS)])
        bias = added + (0.0 if bias is None else bias.double())  # b_in + beta W_in
    if norm.weight is not None:
        weight = in_float64(lambda rows: rows * norm.weight.double(), weight)  # diag(alpha) W_in
    set_weight(linear, weight, bias)


def subtract_mean_from_output(linear: nn.Linear) -> None:
    """W_out <- W_out M and b_out <- b_out M, in place (section 3.2)."""
    bias = None if linear.bias is None else subtract_mean(linear.bias)
    set_weight(linear, subtract_mean(linear.weight.T).T, bias)


def bare(norm: nn.Module, width: int) -> RMSNorm:
    """What is left of a norm when its scale, shift and mean subtraction are elsewhere."""
    if isinstance(norm, RMSNorm):
        return norm
    return RMSNorm(width, norm.eps if isinstance(norm, nn.LayerNorm) else norm.variance_epsilon)


def fuse_embeddings(net: Network) -> None:
    """Subtract the mean from the tables whose rows are summed, in place, if the model's norms would."""
    if isinstance(net.final_norm, nn.LayerNorm):
        for embedding in net.embeddings:
            set_weight(embedding, subtract_mean(embedding.weight))


def fuse_blocks(blocks: Iterable[Block], width: int) -> None:
    """Fuse the norm of each block into its w_in, and mean subtraction into its w_out, in place."""
    for block in blocks:
        if isinstance(block.norm, nn.LayerNorm):
            for linear in block.w_out:
                subtract_mean_from_output(linear)
        for linear in block.w_in:
            fuse_into(block.norm, linear)
        block.norm = bare(block.norm, width)


def fuse_head(net: Network) -> None:
    """Fuse the final norm into the head, in place."""
    fuse_into(net.final_norm, net.head)
    net.final_norm = bare(net.final_norm, net.trained_width)


def untie_head(net: Network) -> None:
    """Give a head that shares the embedding's matrix one of its own, in place, and have the config say so."""
    model = net.model
    _give_own_config(model)
    model.head_was_tied = net.head_was_tied
    if model.head_was_tied:
        net.head.weight = nn.Parameter(net.head.weight.clone(), requires_grad=net.head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # transformers' record of what it tied, from when the model was made


@torch.no_grad()
def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """Turn every norm of the model into an `RMSNorm` without weights, in place; its output does not change.

    A head that was tied to the embedding gets weights of its own: it absorbs the final norm's scale, which the
    embedding must not.

    Returns the same model object.

    Raises:
        ValueError: the model can't be fused (see `families.network`), or already is.
    """
    net = network(model)
    if net.is_fused:
        raise ValueError("this model is already fused: its norms have no weights left to move")
    net.install()
    untie_head(net)
    fuse_embeddings(net)
    fuse_blocks(net.blocks, net.trained_width)
    fuse_head(net)
    return model


def _give_own_config(model: PreTrainedModel) -> None:
    """Two models made from one config object share it; what happens to this model must not reach the other."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own
