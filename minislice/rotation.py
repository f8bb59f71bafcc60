"""Sections 3.1 and 3.3: an RMSNorm network may be rotated by any orthogonal matrix.

Eq. 2, RMSNorm(X Q) Q^T = RMSNorm(X), holds because ||x Q|| = ||x||. So (theorem 1, eqs. 3-7) with

    W_embd <- W_embd Q,   W_in <- Q^T W_in,   W_out <- W_out Q,   b_out <- b_out Q,   W_head <- Q^T W_head

every signal in the network is X Q instead of X, and the logits stay the same. Each boundary may have a Q_l of its own,
if the residual connection carries the signal from one basis to the next: S = Q_{l-1}^T Q_l (section 3.3). Slicing
folds in only the first k columns of Q; this deletes rows and columns of these matrices (eq. 9).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from .architecture.heads import FittedHead
from .architecture.linears import Linear, set_weight
from .architecture.network import Network, network
from .checks import is_several, require, require_flag, require_seed
from .fusion import change_output, fuse_network
from .precision import by_rows


def random_orthogonal(width: int, generator: torch.Generator) -> Float64[Tensor, "D D"]:
    """An orthogonal matrix from the Haar (uniform) distribution, drawn on the CPU.

    The QR decomposition of a Gaussian matrix leaves the sign of each column open, and LAPACK's signs aren't random.
    With a positive diagonal of R the decomposition is unique and Q is Haar (Mezzadri 2007).
    """
    gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64, device="cpu")
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()


def times(W: Float[Tensor, "rows D"], P: Float64[Tensor, "D k"]) -> Float[Tensor, "rows k"]:
    """W P, in W's dtype (see `precision`)."""
    wide = torch.promote_types(W.dtype, torch.float32)
    P = P.to(W.device, wide)
    return by_rows(lambda rows: rows @ P, W, wide)


def fold_reader(linear: Linear, P: Float64[Tensor, "D k"]) -> None:
    """W_in <- P^T W_in, in place (theorem 1); if k < D, this deletes D - k rows of W_in (eq. 9)."""
    set_weight(linear, times(linear.weight, P))


def fold_writer(linear: Linear, P: Float64[Tensor, "D k"]) -> None:
    """W_out <- W_out P and b_out <- b_out P, in place (theorem 1); if k < D, this deletes columns (eq. 9)."""
    change_output(linear, lambda rows: times(rows, P))


def fold_embedding(embedding: nn.Embedding, P: Float64[Tensor, "D k"]) -> None:
    """W_embd <- W_embd P, in place (theorem 1); if k < D, this deletes columns (eq. 9)."""
    set_weight(embedding, times(embedding.weight, P))


def linear_map(S: Float64[Tensor, "k k_next"], like: Tensor) -> nn.Linear:
    """The map x -> x S as a module, in the dtype and on the device of `like`."""
    linear = nn.Linear(*S.shape, bias=False, device="meta")
    linear.weight = nn.Parameter(S.T.to(like).contiguous(), requires_grad=like.requires_grad)
    return linear


def rotate_network(net: Network, rotations: Sequence[Float64[Tensor, "D k"]]) -> None:
    """Rotate boundary l by rotations[l], in place: theorem 1 if all are the same object, section 3.3 if they differ."""
    for embedding in net.embeddings:
        fold_embedding(embedding, rotations[0])
    for block, Q, Q_next in zip(net.blocks, rotations[:-1], rotations[1:], strict=True):
        for linear in block.w_in:
            fold_reader(linear, Q)
        for linear in block.w_out:
            fold_writer(linear, Q_next)
        if Q is not Q_next:
            block.adapter = linear_map(Q.T @ Q_next, like=next(block.parameters()))  # S = Q_{l-1}^T Q_l
    fold_reader(net.head, rotations[-1])


@torch.no_grad()
def rotate(
    model: PreTrainedModel,
    rotation: Float[Tensor, "D D"] | Sequence[Float[Tensor, "D D"]] | None = None,
    *,
    per_block: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """Rotate the signal of a model, in place; its output does not change. A model that isn't fused is fused first.

    Args:
        rotation: one orthogonal matrix for the whole network (theorem 1), or a list of one for each boundary,
            blocks + 1 in all (section 3.3). Without it, random ones are drawn from the Haar distribution.
        per_block: draw one matrix for each boundary instead of one for all.
        seed: for the random matrices.

    Returns the same model object.

    Raises:
        ValueError: the model is sliced or has residual adapters already; a matrix isn't orthogonal or D x D.
    """
    net = network(model)
    require_whole(net, "rotate")
    if not isinstance(net.head, nn.Linear):
        raise ValueError("can't rotate this model: its head shares the embedding's matrix; fuse it without keep_tie")
    D, boundaries = net.trained_width, len(net.blocks) + 1
    require_flag("per_block", per_block)
    if rotation is None:
        generator = torch.Generator().manual_seed(require_seed(seed))
        rotations = [random_orthogonal(D, generator) for _ in range(boundaries if per_block else 1)]
    else:
        rotations = [rotation] if isinstance(rotation, Tensor) else rotation
        are_matrices = is_several(rotations) and all(isinstance(Q, Tensor) for Q in rotations)
        require(are_matrices, "rotation", "a tensor, or a list of tensors", rotation)
        if len(rotations) not in (1, boundaries):
            raise ValueError(f"got {len(rotations)} rotations; give one, or one for each of {boundaries} boundaries")
        rotations = [_orthogonal(Q, D) for Q in rotations]
    if not net.is_fused:
        fuse_network(net)
    rotate_network(net, rotations if len(rotations) > 1 else rotations * boundaries)
    return model


def require_whole(net: Network, action: str) -> None:
    """Raise a ValueError for a network that is sliced or has residual adapters."""
    sliced = net.is_sliced or isinstance(net.head, FittedHead)
    state = "sliced" if sliced else "rotated per block" if net.has_adapters else None
    if state:
        raise ValueError(f"can't {action} this model: it is {state} already; start again from the trained model")


def require_trained(net: Network, action: str) -> None:
    """Raise a ValueError for a network that isn't as trained: fused, sliced, or with residual adapters."""
    require_whole(net, action)
    if net.is_fused:
        raise ValueError(f"can't {action} this model: it is fused already; start again from the trained model")


@contextmanager
def changing(model: nn.Module) -> Iterator[None]:
    """The model is half changed while it is open, and stays so after an error: `network` then refuses it."""
    model.is_half_changed = True
    yield
    del model.is_half_changed


def _orthogonal(Q: Tensor, D: int) -> Float64[Tensor, "D D"]:  # checked
    if tuple(Q.shape) != (D, D):
        raise ValueError(f"a rotation of this model is {D} x {D}, got {tuple(Q.shape)}")
    Q = Q.double()
    error = (Q.T @ Q - torch.eye(D, dtype=Q.dtype, device=Q.device)).abs().max().item()
    if not error < 1e-6:
        raise ValueError(f"not an orthogonal matrix: Q^T Q differs from the identity by {error:.1e}")
    return Q
