"""Eq. 8: the principal components of the signal between blocks.

    C_l = sum_i X_{l,i}^T X_{l,i},        Q_l = eigenvectors of C_l, eigenvalues descending

X_{l,i} is the l-th RMSNorm's output on calibration sequence i (``signal="normalized"``), or that norm's input
(``signal="raw"``, which is what the authors' released code looks at).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

SIGNALS = ("normalized", "raw")


def covariance(
    x: Float[Tensor, "*tokens D"],
    mask: Bool[Tensor, "*tokens"] | None = None,
    add_to: Float64[Tensor, "D D"] | None = None,
) -> Float64[Tensor, "D D"]:
    """X^T X over the tokens where `mask` is True (eq. 8): not centred, not divided by their number.

    In float64; on a GPU, where that is slow, the products are in float32 and are summed in float64 every 1024 tokens.

    Args:
        add_to: the covariance of other tokens; the sum is in place.
    """
    rows = x.reshape(-1, x.shape[-1]) if mask is None else x[mask]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32) if rows.is_cuda else torch.float64)
    D = rows.shape[1]
    C = rows.new_zeros(D, D, dtype=torch.float64) if add_to is None else add_to
    panel = -(-D // 4)
    with _without_tf32():
        for part in rows.split(1024):
            for start in range(0, D, panel):  # C is symmetric: a panel right of the diagonal is also the one below it
                product = part[:, start : start + panel].T @ part[:, start:]
                C[start : start + panel, start:] += product
                C[start + panel :, start : start + panel] += product[:, panel:].T
    return C


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Float32 products of float32's precision on a GPU, whatever the caller has allowed."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def principal_components(
    C: Float64[Tensor, "D D"], dtype: torch.dtype = torch.float64
) -> tuple[Float64[Tensor, " D"], Float64[Tensor, "D D"]]:
    """Eigenvalues of C, descending, and its eigenvectors as the columns of Q (eq. 8).

    Args:
        dtype: of the decomposition; float32 is there to repeat the ablation of appendix A.2.

    Raises:
        ValueError: C is zero or has a NaN or an infinity.
    """
    if not torch.isfinite(C).all():
        raise ValueError("the covariance of the signal has a NaN or an infinity")
    if not C.trace() > 0:
        raise ValueError("the covariance of the signal is zero: no calibration token carries any signal")
    eigenvalues, Q = torch.linalg.eigh(C.to(dtype))
    return eigenvalues.flip(0).clamp(min=0).double(), Q.flip(1).double()


def width_keeping(eigenvalues: Float64[Tensor, " D"], discard: float, multiple: int = 1) -> int:
    """The smallest width that discards at most the share `discard` of the variance (appendix A.4).

    It is a multiple of `multiple`, or D.
    """
    kept = eigenvalues.cumsum(0) / eigenvalues.sum()
    width = int((kept < 1 - discard).sum()) + 1
    return min(-(-width // multiple) * multiple, len(eigenvalues))
