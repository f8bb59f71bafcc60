"""Eq. 8: the principal components of the signal between blocks.

    C_l = sum_i X_{l,i}^T X_{l,i},        Q_l = eigenvectors of C_l, eigenvalues descending

X_{l,i} is the l-th RMSNorm's output on calibration sequence i (``signal="normalized"``), or that norm's input
(``signal="raw"``, which is what the authors' released code looks at).
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

SIGNALS = ("normalized", "raw")


def covariance(x: Float[Tensor, "*tokens D"], mask: Bool[Tensor, "*tokens"] | None = None) -> Float64[Tensor, "D D"]:
    """X^T X in float64 over the tokens where `mask` is True (eq. 8): not centred, not divided by their number."""
    rows = (x.reshape(-1, x.shape[-1]) if mask is None else x[mask]).double()
    D = rows.shape[1]
    C = rows.new_empty(D, D)
    panel = -(-D // 4)
    for start in range(0, D, panel):  # C is symmetric: a panel right of the diagonal is also the one below it
        C[start : start + panel, start:] = rows[:, start : start + panel].T @ rows[:, start:]
        C[start + panel :, start : start + panel] = C[start : start + panel, start + panel :].T
    return C


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
