"""Beyond the paper: the inner side of a block, and all that is needed to solve for its W_out again.

SliceGPT deletes dimensions of the signal: rows of W_in, columns of W_out. The other side of these matrices is the
inner one. With

    H = sigma(RMSNorm(X) W_in + b_in)          [tokens, inner]    what W_out reads; its bias reads a column of ones
    Y = X S + H W_out                          [tokens, D]        the signal behind the block
    C = sum_t w_t^2 h_t^T h_t                  [inner, inner]
    B = sum_t w_t^2 h_t^T (x_t - y_t)          [inner, D]         x: the dense network's signal there

every least-squares problem for W_out is answered by C and B, whatever the number of tokens. The next norm divides the
signal by its rms, so errors are weighted by w_t = 1 / rms. A parallel layer's two W_out are stacked, and so are their
inputs.

Repair: the pass walks the dense network beside the sliced one, and solves for W_out again, so that a block makes up
for what slicing lost before it. With X the dense signal behind the block, Z the sliced one before it, and lambda the
share `REPAIR_RIDGE` of the mean of C's diagonal:

    W_out  <-  argmin_W || diag(w) (X - Z S - H W) ||^2 + lambda || W - W_out ||^2  =  W_out + (C + lambda I)^-1 B

If nothing was lost, B is zero and W_out stays as it is. The number of parameters doesn't change.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..architecture.blocks import Block
from ..architecture.linears import Linear, set_linear
from ..architecture.neurons import keep_neurons
from ..calibration import not_finite
from ..pca import RUN
from ..precision import without_tf32
from .walk import Walk

REPAIR_RIDGE = 0.1  # between 1e-4 and 1 little depends on it on the embedded models (notebooks/measure/ridges.py)


@contextmanager
def inputs_of(linears: Sequence[Linear]) -> Iterator[list[Tensor]]:
    """While it is open, the list has the last input of each linear."""
    inputs: list[Tensor] = [None] * len(linears)
    with ExitStack() as hooks:
        for index, linear in enumerate(linears):
            note = lambda module, args, index=index: inputs.__setitem__(index, args[0])  # noqa: E731
            hooks.enter_context(getattr(linear, "module", linear).register_forward_pre_hook(note))
        yield inputs


def moments(
    h: Float[Tensor, "*tokens inner"],
    y: Float[Tensor, "*tokens D"],
    x: Float[Tensor, "*tokens D"],
    mask: Bool[Tensor, "*tokens"] | None = None,
    add_to: Float64[Tensor, "inner inner_and_D"] | None = None,
) -> Float64[Tensor, "inner inner_and_D"]:
    """[C, B] side by side, over the tokens where `mask` is True; products as in `pca.covariance`.

    Args:
        h: inputs of W_out, with the column of ones if it has a bias.
        y: the signal behind the block.
        x: the signal that is wanted there; its rms is the weight.
        add_to: the moments of other tokens; the sum is in place.
    """
    h, y, x = (t[mask] if mask is not None else t.reshape(-1, t.shape[-1]) for t in (h, y, x))
    wide, weight = torch.promote_types(x.dtype, torch.float32), inverse_rms(x)
    h, error = h.to(wide) * weight, (x.to(wide) - y.to(wide)) * weight
    total = h.new_zeros(h.shape[1], h.shape[1] + x.shape[1], dtype=torch.float64) if add_to is None else add_to
    with without_tf32():
        for a, b in zip(h.split(RUN), error.split(RUN), strict=True):
            total += a.T @ torch.cat([a, b], dim=1)
    return total


def block_moments(walk: Walk, block: Block) -> tuple[Float64[Tensor, "inner inner"], Float64[Tensor, "inner D"]]:
    """C and B of the block that a walk has reached, over its whole calibration set."""
    total = None
    for index in walk.numbers:
        with inputs_of(block.w_out) as inputs:
            y, wanted = walk.behind(block, index)
        batch = walk.calibration.batches[index]
        h = torch.cat([*inputs, y.new_ones(*y.shape[:-1], int(has_bias(block)))], dim=-1)
        total = moments(h, y, wanted, batch.mask, total)
        if not torch.isfinite(total.sum()):
            raise ValueError(not_finite(y, batch, f"block {block.number}"))
    total = walk.calibration.summed(total)
    return total[:, : len(total)], total[:, len(total) :]


def inverse_rms(x: Float[Tensor, "tokens D"]) -> Float[Tensor, "tokens 1"]:
    """1 / rms of each token's signal, in float32 or wider; large, but finite, where the signal is zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.square().mean(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()


def sides(
    block: Block, C: Float64[Tensor, "n n"]
) -> list[tuple[Float64[Tensor, "n n"], Float64[Tensor, "n D"], slice]]:
    """C, W_out, and where the MLP's neurons are among the inner dimensions; one of each, for `experts` has many."""
    mlp = block.mlp_linears
    return [(C, output_matrix(block), slice(mlp.first, mlp.first + mlp.neurons) if mlp else slice(0))]


def has_bias(block: Block) -> bool:
    """Whether the block's output has a bias, so that the last of its inner dimensions is the column of ones."""
    return any(linear.bias is not None for linear in block.w_out)


def output_matrix(block: Block) -> Float64[Tensor, "inner D"]:
    """The matrix that H is multiplied with: the block's W_out, stacked, and the sum of their biases as a last row.

    Before fusion a branch may also be multiplied by a number.
    """
    rows = [linear.weight.T.double() for linear in block.w_out]
    if has_bias(block):
        rows.append(sum(linear.bias.double() for linear in block.w_out if linear.bias is not None)[None])
    return torch.cat(rows) * block.scale


def set_output_matrix(block: Block, W: Float64[Tensor, "inner D"]) -> None:
    """Set the block's W_out, in place; of several biases the last one becomes the sum."""
    linears, W = block.w_out, W / block.scale
    biased = [linear for linear in linears if linear.bias is not None]
    parts = W.split([linear.in_features for linear in linears] + [1] * has_bias(block))
    for linear, rows in zip(linears, parts, strict=False):
        if linear.bias is None:
            set_linear(linear, rows.T, None)
        else:
            set_linear(linear, rows.T, W[-1] if linear is biased[-1] else torch.zeros_like(W[-1]))


def keep_inner(block: Block, kept: Int64[Tensor, " kept"], W: Float64[Tensor, "kept D"]) -> None:
    """Delete all other inner dimensions of the block, in place, and give it this W_out."""
    if mlp := block.mlp_linears:
        keep_neurons(mlp, kept[(kept >= mlp.first) & (kept < mlp.first + mlp.neurons)] - mlp.first)
    set_output_matrix(block, W)


def with_ridge(C: Float64[Tensor, "n n"], ridge: float) -> Float64[Tensor, "n n"]:
    """C + lambda I, where lambda is the share `ridge` of the mean of C's diagonal: this has an inverse."""
    floor = torch.finfo(C.dtype).tiny ** 0.5  # C is zero if no token has an input
    return C + max(ridge * C.diagonal().mean().item(), floor) * torch.eye(len(C), dtype=C.dtype, device=C.device)


def refit(C: Float64[Tensor, "n n"], B: Float64[Tensor, "n D"], ridge: float | None = None) -> Float64[Tensor, "n D"]:
    """What to add to W_out: (C + lambda I)^-1 B; the ridge is `REPAIR_RIDGE` unless given."""
    return torch.cholesky_solve(B, torch.linalg.cholesky(with_ridge(C, REPAIR_RIDGE if ridge is None else ridge)))
