"""Eq. 8: the principal components of the signal between blocks.

    C_l = sum_i X_{l,i}^T X_{l,i},        Q_l = eigenvectors of C_l, eigenvalues descending

X_{l,i} is the output of the norm that reads boundary l, on calibration sequence i (``signal="normalized"``), or the
input of that norm (``signal="raw"``, which is what the authors' released code looks at).
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from .fusion import subtract_mean
from .precision import without_tf32
from .rotation import random_orthogonal

SIGNALS = ("normalized", "raw")
RUN = 1024  # tokens whose products are summed before they are added to the others


def covariance(
    x: Float[Tensor, "*tokens D"],
    mask: Bool[Tensor, "*tokens"] | None = None,
    add_to: Float64[Tensor, "D D"] | None = None,
) -> Float64[Tensor, "D D"]:
    """X^T X over the tokens where `mask` is True (eq. 8): not centred, not divided by the number of tokens.

    Products are in the signal's precision, at least float32, and are summed in float64 every `RUN` tokens. This is as
    good as float64 for all but the smallest eigenvalues: a zero one comes out as about 1e-8 of the largest.

    Args:
        add_to: the covariance of other tokens; the sum is in place.
    """
    rows = x.reshape(-1, x.shape[-1]) if mask is None else x[mask]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    C = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64) if add_to is None else add_to
    with without_tf32():
        for run in rows.split(RUN):
            C += run.T @ run  # eq. 8
    return C


def principal_components(
    C: Float64[Tensor, "D D"], dtype: torch.dtype = torch.float64
) -> tuple[Float64[Tensor, " D"], Float64[Tensor, "D D"]]:
    """Eigenvalues of C, descending, and its eigenvectors as the columns of Q (eq. 8).

    Args:
        dtype: of the decomposition; float32 repeats the ablation of appendix A.2.

    Raises:
        ValueError: C is zero.
    """
    if not C.trace() > 0:
        raise ValueError("the covariance of the signal is zero: no calibration token carries any signal")
    eigenvalues, Q = torch.linalg.eigh(C.to(dtype))
    return eigenvalues.flip(0).clamp(min=0).double(), Q.flip(1).double().contiguous()


def width_keeping(eigenvalues: Float64[Tensor, " D"], discard: float, multiple: int = 1) -> int:
    """The smallest width that discards at most the share `discard` of the variance (appendix A.4).

    The width is a multiple of `multiple`, or D.
    """
    shares = eigenvalues.cumsum(0) / eigenvalues.sum()  # of the variance, in the first 1, 2 ... columns
    width = int((shares < 1 - discard).sum()) + 1
    return min(-(-width // multiple) * multiple, len(eigenvalues))


def without_mean(C: Float64[Tensor, "D D"]) -> Float64[Tensor, "D D"]:
    """M C M, which removes rounding from the covariance of a signal whose rows have mean zero (section 3.2).

    If the network was rotated after it was fused, the mean lies in another direction; then C is returned unchanged.
    """
    centred = subtract_mean(subtract_mean(C).T)
    return centred if centred.trace() > (1 - 1e-6) * C.trace() else C


def discarded_share(C: Float64[Tensor, "D D"], Q: Float64[Tensor, "D D"], k: int) -> float:
    """The share of the variance in all columns of Q but the first k."""
    deleted = Q[:, k:].T
    return max(0.0, ((deleted @ C * deleted).sum() / C.trace()).item())  # rounding may make it less than zero


def choose_basis(
    Q: Float64[Tensor, "D D"],
    k: int,
    C: Float64[Tensor, "D D"],
    basis: str,
    orientation: str,
    generator: torch.Generator,
) -> Float64[Tensor, "D D"]:
    """An orthogonal matrix whose first k columns are kept: the principal components Q, or another basis.

    Args:
        basis, orientation: see `options.SlicingOptions`.
    """
    if basis == "random":
        Q = random_orthogonal(len(C), generator).to(C.device)
    elif basis == "column-norm":
        Q = torch.eye(len(C), dtype=C.dtype, device=C.device)[:, C.diagonal().argsort(descending=True, stable=True)]
    if orientation == "random":
        Q = torch.cat([Q[:, :k] @ random_orthogonal(k, generator).to(Q.device), Q[:, k:]], dim=1)
    return Q
