"""Residual adapters (section 3.3): what carries the signal from one block's basis to the next.

With P_l the D x k basis of boundary l, the paper's adapter is S = P_l^T P_{l+1}, a k x k matrix (`full`). Two
k-dimensional subspaces of R^D meet in at least 2k - D dimensions, so at least 2k - D of the singular values of
S = U C V^T, the cosines of the principal angles between the subspaces, are 1. Replacing P_{l+1} by P_{l+1} V U^T keeps
its subspace, so the sliced network computes the same function, and the adapter becomes symmetric:

    S  ->  U C U^T  =  I - U_r (1 - C_r) U_r^T,        r <= D - k directions whose cosine is below 1

- `low-rank` stores A = U_r (1 - C_r)^(1/2) and computes x - (x A) A^T: k r parameters instead of k^2
- `none` leaves the adapter out: 0 parameters, an approximation; the principal components of later boundaries are
  computed with it, so that they make up for some of what it loses

Where the width grows (k -> k', the last boundary when the head isn't sliced), the aligned adapter appends k' - k zeros.
"""

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from .blocks import LowRankAdapter
from .rotation import linear_map

FORMS = ("full", "low-rank", "none")
ROUNDING = 1e-12  # a cosine deficit below this is an angle of zero


def align(
    P: Float64[Tensor, "D k"], P_next: Float64[Tensor, "D k_next"]
) -> tuple[Float64[Tensor, "D k_next"], Float64[Tensor, "k k"], Float64[Tensor, " k"]]:
    """Turn the columns of `P_next` inside their span until P^T P_next is [U diag(c) U^T, 0].

    Needs k <= k_next. Returns the turned basis, U and the cosines c, descending.
    """
    k, k_next = P.shape[1], P_next.shape[1]
    if k > k_next:
        raise ValueError(f"can't align a basis of {k_next} columns with one of {k}: the width may not shrink")
    U, cosines, Vh = torch.linalg.svd(P.T @ P_next, full_matrices=True)  # Vh: [k_next, k_next]
    turn = Vh.T @ torch.block_diag(U.T, torch.eye(k_next - k, dtype=U.dtype, device=U.device))
    return P_next @ turn, U, cosines


def make_adapter(
    P: Float64[Tensor, "D k"], P_next: Float64[Tensor, "D k_next"], form: str, tolerance: float, like: Tensor
) -> tuple[Float64[Tensor, "D k_next"], nn.Module | None]:
    """The next basis, aligned where the form asks for it, and the adapter that leads to it; None is the identity.

    Args:
        form: one of `FORMS`. Where the width shrinks, S is not square, and "low-rank" keeps it whole.
        tolerance: "low-rank" drops the directions whose cosine deficit 1 - c is at most this; 0 is exact.
        like: the adapter takes dtype, device and requires_grad of this tensor.

    Raises:
        ValueError: form "none" where the width shrinks.
    """
    D, k, k_next = *P.shape, P_next.shape[1]
    if form == "full" or (form == "low-rank" and k > k_next):
        return P_next, linear_map(P.T @ P_next, like)
    P_next, U, cosines = align(P, P_next)
    deficits = (1 - cosines).clamp(min=0)
    rank = 0 if form == "none" else min(int((deficits > max(tolerance, ROUNDING)).sum()), D - k)
    if rank == 0 and k == k_next:
        return P_next, None
    A = U[:, k - rank :] * deficits[k - rank :].sqrt()
    return P_next, LowRankAdapter(A.to(like), k_next, like.requires_grad)
