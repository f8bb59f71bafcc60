"""Beyond the paper: the inner side of a block, and all that is needed to solve for its W_out again.

SliceGPT deletes dimensions of the signal: rows of W_in, columns of W_out. The other side of these matrices is the
inner one. With

    H = sigma(RMSNorm(X) W_in + b_in)          [tokens, inner]    what W_out reads; its bias reads a column of ones
    Y = X S + H W_out                          [tokens, D]        the signal after the block
    C = sum_t w_t^2 h_t^T h_t                  [inner, inner]
    B = sum_t w_t^2 h_t^T (x_t - y_t)          [inner, D]         x: the dense network's signal there

every least-squares problem for W_out is answered by C and B, whatever the number of tokens. The next norm divides the
signal by its rms, so errors are weighted by w_t = 1 / rms. A parallel layer's two W_out are stacked, and so are their
inputs. In a mixture every expert has H, W_out and C of its own, over the tokens that the router sends there, times the
weights that the router gives them. There is no B: no single expert is to blame for what is missing after a mixture.

Repair: the pass walks the dense network beside the sliced one, and solves for W_out again, so that a block makes up
for what slicing lost before it. With X the dense signal after the block, Z the sliced one before it, and lambda the
share `REPAIR_RIDGE` of the mean of C's diagonal:

    W_out  <-  argmin_W || diag(w) (X - Z S - H W) ||^2 + lambda || W - W_out ||^2  =  W_out + (C + lambda I)^-1 B

If nothing was lost, B is zero and W_out stays as it is. The number of parameters doesn't change.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from ..architecture.blocks import Block
from ..architecture.linears import ExpertsWriter, Linear, set_linear, set_weight
from ..architecture.mixtures import neurons_of
from ..architecture.neurons import keep_experts_neurons, keep_neurons
from ..calibration import Calibration, Signal, not_finite
from ..pca import RUN, covariance
from ..precision import without_tf32

REPAIR_RIDGE = 0.1  # between 1e-4 and 1 little depends on it on the embedded models (notebooks/measure/ridges.py)


@dataclass(frozen=True)
class Walk:
    """A pass that has reached a block, whose W_out has all D columns."""

    calibration: Calibration
    Z: Signal  # before the block, [tokens, k]
    P: Float64[Tensor, "D k"] | None = None  # the basis of Z; without it, Z is in the trained basis
    dense: Signal | None = None  # the dense network's signal after the block; without it, the block's own is wanted
    chosen: Sequence[int] | None = None  # the numbers of some batches; without it, all
    into: Signal | None = None  # `outputs` writes the signal after the block here

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the batches that the walk goes over."""
        return range(len(self.calibration.batches)) if self.chosen is None else self.chosen

    def outputs(self, block: Block, index: int) -> tuple[Float[Tensor, "*tokens D"], Float[Tensor, "*tokens D"]]:
        """The signal of a batch after the block, and the one that is wanted there, in the trained basis."""
        z = self.Z[index]
        y = block.branch(z, **self.calibration.contexts[index][block.layer])
        y = y + (z if self.P is None else z @ self.P.T.to(z))
        if self.into is not None:
            self.into[index] = y
        return y, y if self.dense is None else self.dense[index]

    def split(self, each: int) -> tuple["Walk", "Walk"]:
        """The walk over the batches to learn from, and the one over those that are held out.

        Every `each`-th batch is held out; with fewer batches the last one, and a single batch isn't.
        """
        held_out = self.numbers[each - 1 :: each] or self.numbers[1:][-1:]
        learned = [number for number in self.numbers if number not in held_out]
        return replace(self, chosen=learned), replace(self, chosen=held_out)


@contextmanager
def inputs_of(linears: Sequence[Linear]) -> Iterator[list[Tensor | tuple[Tensor, ...]]]:
    """While it is open, the list has the last input of each linear; of experts, the router's choice and weights too."""
    inputs = [None] * len(linears)
    with ExitStack() as hooks:
        for index, linear in enumerate(linears):

            def note(module: nn.Module, args: tuple, index: int = index) -> None:
                inputs[index] = args if len(args) > 1 else args[0]

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
        y: the signal after the block.
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


def experts_moments(
    experts: nn.Module,
    x: Float[Tensor, "tokens k"],
    chosen: Int64[Tensor, "tokens each"],
    weights: Float[Tensor, "tokens each"],
    add_to: Float64[Tensor, "experts inner inner"] | None = None,
) -> Float64[Tensor, "experts inner inner"]:
    """C of each expert, from what it reads and from the router's choice; `add_to` as in `moments`.

    All of them are in memory at once, 13 GB for a layer of Mixtral 8x7B.
    """
    for expert in chosen.unique().tolist():
        token, place = (chosen == expert).nonzero(as_tuple=True)
        h = neurons_of(experts, expert, x[token])
        h = torch.cat([h, h.new_ones(len(h), int(experts.has_bias))], dim=1).to(weights) * weights[token, place, None]
        if add_to is None:
            add_to = h.new_zeros(experts.num_experts, h.shape[1], h.shape[1], dtype=torch.float64)
        covariance(h, add_to=add_to[expert])
    return add_to


def block_moments(
    walk: Walk, block: Block
) -> tuple[Float64[Tensor, "*experts inner inner"], Float64[Tensor, "inner D"] | None]:
    """C and B of the block that a walk has reached, over its whole calibration set.

    Without a dense signal there is no B, nor in a mixture, which has a C for each expert.
    """
    total, writers = None, [ExpertsWriter(block.experts)] if block.is_mixture else block.w_out
    for index in walk.numbers:
        with inputs_of(writers) as inputs:
            y, wanted = walk.outputs(block, index)
        batch = walk.calibration.batches[index]
        if block.is_mixture:
            [(x, chosen, weights)] = inputs
            weights = weights * inverse_rms(wanted.flatten(0, 1))
            if batch.mask is not None:
                weights = weights * batch.mask.flatten()[:, None]
            total = experts_moments(block.experts, x, chosen, weights, total)
        else:
            h = torch.cat([*inputs, y.new_ones(*y.shape[:-1], int(has_bias(block)))], dim=-1)
            total = moments(h, y, wanted, batch.mask, total)
        if not torch.isfinite(total.sum()):
            raise ValueError(not_finite(y, batch, f"block {block.number}"))
    C, B = walk.calibration.summed(total).tensor_split([total.shape[-2]], dim=-1)
    return C, None if walk.dense is None or block.is_mixture else B


def inverse_rms(x: Float[Tensor, "tokens D"]) -> Float[Tensor, "tokens 1"]:
    """1 / rms of each token's signal, in float32 or wider; large, but finite, where the signal is zero."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.square().mean(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()


def places_of_neurons(block: Block) -> slice:
    """Where the neurons are among the inner dimensions of a block, or of each expert."""
    first = block.mlp_linears.first if block.mlp_linears else 0
    return slice(first, first + block.neurons)


def has_bias(block: Block) -> bool:
    """Whether the block's output has a bias, so that the last of its inner dimensions is the column of ones."""
    return any(linear.bias is not None for linear in block.w_out)


def output_matrix(block: Block) -> Float64[Tensor, "*experts inner D"]:
    """The matrix that H is multiplied with: the block's W_out, stacked, and the sum of their biases as a last row.

    Before fusion a branch may also be multiplied by a number. In a mixture: each expert's W_out, and its bias.
    """
    if block.is_mixture:
        W = ExpertsWriter(block.experts).matrices().mT.double()
        return torch.cat([W, block.experts.down_proj_bias[:, None].double()], dim=1) if block.experts.has_bias else W
    rows = [linear.weight.T.double() for linear in block.w_out]
    if has_bias(block):
        rows.append(sum(linear.bias.double() for linear in block.w_out if linear.bias is not None)[None])
    return torch.cat(rows) * block.scale


def keep_inner(block: Block, kept: Int64[Tensor, "*experts kept"], W: Float64[Tensor, "*experts kept D"]) -> None:
    """Delete all other inner dimensions of the block, or of each expert, in place, and give it this W_out.

    Of several biases the last one becomes the sum.
    """
    if block.is_mixture:
        keep_experts_neurons(block.experts, kept[:, : kept.shape[1] - block.experts.has_bias])  # a bias is the last one
        set_weight(ExpertsWriter(block.experts), W.permute(2, 0, 1).flatten(1))
        return
    if mlp := block.mlp_linears:
        keep_neurons(mlp, kept[(kept >= mlp.first) & (kept < mlp.first + mlp.neurons)] - mlp.first)
    linears, W = block.w_out, W / block.scale
    biased = [linear for linear in linears if linear.bias is not None]
    parts = W.split([linear.in_features for linear in linears] + [1] * has_bias(block))
    for linear, rows in zip(linears, parts, strict=False):
        if linear.bias is None:
            set_linear(linear, rows.T, None)
        else:
            set_linear(linear, rows.T, W[-1] if linear is biased[-1] else torch.zeros_like(W[-1]))


def with_ridge(C: Float64[Tensor, "n n"], ridge: float) -> Float64[Tensor, "n n"]:
    """C + lambda I, where lambda is the share `ridge` of the mean of C's diagonal: this has an inverse."""
    floor = torch.finfo(C.dtype).tiny ** 0.5  # C is zero if no token has an input
    return C + max(ridge * C.diagonal().mean().item(), floor) * torch.eye(len(C), dtype=C.dtype, device=C.device)


def refit(C: Float64[Tensor, "n n"], B: Float64[Tensor, "n D"], ridge: float | None = None) -> Float64[Tensor, "n D"]:
    """What to add to W_out: (C + lambda I)^-1 B; the ridge is `REPAIR_RIDGE` unless given."""
    return torch.cholesky_solve(B, torch.linalg.cholesky(with_ridge(C, REPAIR_RIDGE if ridge is None else ridge)))
