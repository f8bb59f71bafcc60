"""Section 3.2: every norm becomes an RMSNorm without weights; its scale, shift and mean go into its neighbours.

Eq. 1 takes a LayerNorm apart (alpha its scale, beta its shift, M = I - 1/D 1 1^T subtracts a row's mean):

    LayerNorm(X) = RMSNorm(X M) diag(alpha) sqrt(D) + 1 beta^T

- alpha and beta belong to whoever reads the norm:  b_in <- b_in + beta W_in,  then  W_in <- diag(alpha) W_in
- M belongs to whoever wrote the signal:            W_embd <- W_embd M,  W_out <- W_out M,  b_out <- b_out M

LLaMA's norm is an RMSNorm with an alpha: no M, no beta. (`blocks.RMSNorm` includes the sqrt(D).) In some parallel
layers two norms read one signal; without their scales they are the same RMSNorm.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from .architecture.blocks import Block, RMSNorm
from .architecture.configuration import own_config
from .architecture.family import LAYERNORM, NormKind
from .architecture.heads import CentredEmbedding
from .architecture.linears import Linear, set_linear, set_weight
from .architecture.modeling import SavesSliced
from .architecture.network import Network, network
from .checks import require_flag
from .heads import tie_embedding, tie_head
from .precision import ROWS, by_rows


def subtract_mean(weight: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """W M: subtract from every row its mean (eq. 1)."""
    rows = weight.reshape(-1, weight.shape[-1])
    return by_rows(lambda some: some - some.mean(-1, keepdim=True), rows).view_as(weight)


def fuse_into(norm: nn.Module, linear: Linear, kind: NormKind = LAYERNORM) -> None:
    """Move a norm's scale and shift into a linear that reads the norm, in place: a shift makes a bias."""
    weight, bias = linear.weight, linear.bias
    scale, shift = kind.scale_of(norm), getattr(norm, "bias", None)
    if shift is not None:
        added = torch.cat([rows.double() @ shift.double() for rows in weight.split(ROWS)])
        bias = added + (0.0 if bias is None else bias.double())  # b_in + beta W_in
    if scale is not None:
        weight = by_rows(lambda rows: rows * scale.double(), weight)  # diag(alpha) W_in
    set_linear(linear, weight, bias)


def change_output(linear: Linear, change: Callable[[Float[Tensor, "rows D"]], Float[Tensor, "rows k"]]) -> None:
    """Change the rows of W_out, and b_out as one more row, in place."""
    bias = None if linear.bias is None else change(linear.bias[None])[0]
    set_linear(linear, change(linear.weight.T).T, bias)


def subtract_mean_from_output(linear: Linear) -> None:
    """W_out <- W_out M and b_out <- b_out M, in place."""
    change_output(linear, subtract_mean)


def scale_output(linear: Linear, number: float) -> None:
    """Move the number that a branch is multiplied by into W_out and b_out, in place."""
    change_output(linear, lambda W: by_rows(lambda rows: rows * number, W))


def bare(norm: nn.Module, net: Network) -> RMSNorm:
    """The RMSNorm that stands in place of a norm after fusion."""
    return norm if isinstance(norm, RMSNorm) else RMSNorm(net.trained_width, net.family.norm.eps_of(norm))


def fuse_embeddings(net: Network) -> None:
    """W_embd <- W_embd M, in place, if the model's norms subtract the mean.

    A `CentredEmbedding` subtracts the mean when it is read, so its matrix stays. If a norm follows the token embedding
    alone, the normalised embedding replaces both.
    """
    if net.embedding_norm is not None:
        set_weight(net.embeddings[0], net.embedding_norm(net.embeddings[0].weight))
        setattr(net.decoder, net.family.embedding_norm, nn.Identity())
    for embedding in net.embeddings:
        if net.subtracts_mean and not isinstance(embedding, CentredEmbedding):
            set_weight(embedding, subtract_mean(embedding.weight))


def fuse_blocks(net: Network, blocks: Iterable[Block]) -> None:
    """Fuse the norm of each block into its w_in, and the mean subtraction of the next norm into its w_out, in place."""
    for block in blocks:
        for linear in block.w_out:
            if net.subtracts_mean:
                subtract_mean_from_output(linear)
            if block.scale != 1:
                scale_output(linear, block.scale)
        for name, linear in block.readers.items():
            fuse_into(block.norm_of(name), linear, net.family.norm)
        block.norm, block.mlp_norm, block.scale = bare(block.norm, net), None, 1.0


def fuse_head(net: Network, keep_tie: bool = False) -> None:
    """Fuse the final norm into the head, in place."""
    if keep_tie:
        tie_head(net)
    else:
        fuse_into(net.final_norm, net.head, net.family.norm)
    net.final_norm = bare(net.final_norm, net)


def prepare(net: Network, keep_tie: bool) -> None:
    """Have the model run blocks that can be fused one by one, in place, and its config describe the fused model."""
    model, head = net.model, net.head
    model.head_was_tied = net.head_was_tied
    if keep_tie:
        tie_embedding(net)
    elif model.head_was_tied:  # the head gets a matrix of its own
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=head.weight.requires_grad)
    config = own_config(model)
    config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # transformers' record of the tied weights
    if net.family.branch_scale is not None:
        setattr(config, net.family.branch_scale, 1.0)
    net.install()


def fuse(model: PreTrainedModel, keep_tie: bool = False) -> PreTrainedModel:
    """Turn every norm of the model into an `RMSNorm` without weights, in place; its output does not change.

    A tied head gets weights of its own: it absorbs the final norm's scale, which the embedding must not.

    Args:
        keep_tie: keep the head tied (see `heads`); such a network can't be rotated at its ends.

    Returns the same model object.

    Raises:
        ValueError: the model can't be fused (see `network.network`), is fused already, or has no tie to keep.
    """
    require_flag("keep_tie", keep_tie)
    net = network(model)
    if net.is_fused:
        raise ValueError("this model is already fused: its norms have no weights left to move")
    fuse_network(net, keep_tie)
    return model


@torch.no_grad()
def fuse_network(net: Network, keep_tie: bool = False) -> None:
    """`fuse` for a network that isn't fused, in place."""
    hooked = [module for module in net.model.modules() if hasattr(module, "_hf_hook")]  # by accelerate
    offloaded = any(parameter.is_meta for module in hooked for parameter in module.parameters())
    if offloaded or len({parameter.device for parameter in net.model.parameters()}) > 1:
        raise ValueError(
            "device_map has left some of this model's weights on another device or the disk; load it without "
            "device_map, or slice its folder with slice_streamed"
        )
    prepare(net, keep_tie)
    net.model.save_pretrained = SavesSliced(net.model)
    fuse_embeddings(net)
    fuse_blocks(net, net.blocks)
    fuse_head(net, keep_tie)
