"""Residual adapters (section 3.3): what carries the signal from one block's basis to the next.

With P_l the D x k basis of boundary l, the paper's adapter is S = P_l^T P_{l+1}, a k x k matrix (`full`). Two
k-dimensional subspaces of R^D meet in at least 2k - D dimensions, so at least 2k - D of the singular values of
S = U C V^T, the cosines of the principal angles between the subspaces, are 1. Replacing P_{l+1} by P_{l+1} V U^T keeps
its subspace, so the sliced network computes the same function, and the adapter becomes symmetric:

    S  ->  U C U^T  =  I - U_r (1 - C_r) U_r^T,        r <= D - k directions whose cosine is below 1

- `low-rank` stores A = U_r (1 - C_r)^(1/2) and computes x - (x A) A^T: k r parameters instead of k^2
- `none` leaves the adapter out: 0 parameters, an approximation; the principal components of later boundaries are
  computed with it, so that they make up for some of what it loses

The r directions come cheaper, and small angles more exactly, from what boundary l+1 deletes: with R its other D - k
columns, P_l^T R = U_r sin V'^T has the sines of the same angles, and 1 - cos = sin^2 / (1 + cos).

Where the width grows (k -> k', the last boundary when the head isn't sliced), the aligned adapter appends k' - k zeros.
"""

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from .architecture.blocks import LowRankAdapter
from .rotation import linear_map

FORMS = ("full", "low-rank", "none")
ROUNDING = 1e-12  # a cosine deficit below this is an angle of zero


def align(
    P: Float64[Tensor, "D k"], Q_next: Float64[Tensor, "D D"], k_next: int
) -> tuple[Float64[Tensor, "D k_next"], Float64[Tensor, "k m"], Float64[Tensor, " m"]]:
    """The basis of the first `k_next` columns of `Q_next` for which P^T P_next is [I - U diag(d) U^T, 0].

    Needs k <= k_next. Returns that basis, U, and the deficits d = 1 - cosine, descending, of the m = min(k, D - k_next)
    principal angles that may differ from zero.

    Raises:
        ValueError: the width shrinks.
    """
    k = P.shape[1]
    if k > k_next:
        raise ValueError(f"can't align a basis of {k_next} columns with one of {k}: the width may not shrink")
    P_next, R = Q_next[:, :k_next], Q_next[:, k_next:]
    U, sines, _ = torch.linalg.svd(P.T @ R, full_matrices=False)
    S = P.T @ P_next
    cosines = (U.T @ S).norm(dim=1)  # more exact near zero than (1 - sines^2)^(1/2)
    deficits = sines.square() / (1 + cosines)
    if k == k_next and (len(cosines) == 0 or cosines.min() > 0.1):
        W = S + U @ ((1 / cosines - 1)[:, None] * (U.T @ S))
    else:  # near a right angle, division by a cosine would amplify rounding; a full decomposition doesn't divide
        V, _, Vh = torch.linalg.svd(S, full_matrices=True)
        W = torch.cat([V @ Vh[:k], Vh[k:]])
    return P_next @ W.T, U, deficits


def make_adapter(
    P: Float64[Tensor, "D k"],
    Q_next: Float64[Tensor, "D D"],
    k_next: int,
    form: str,
    tolerance: float,
    like: Tensor,
) -> tuple[Float64[Tensor, "D k_next"], nn.Module | None]:
    """The next basis, aligned where the form asks for it, and the adapter that leads to it; None is the identity.

    Args:
        Q_next: an orthogonal matrix; the next basis spans its first `k_next` columns.
        form: one of `FORMS`. Where the width shrinks, S is not square, and "low-rank" keeps it whole.
        tolerance: "low-rank" drops the directions whose cosine deficit 1 - c is at most this; 0 is exact.
        like: the adapter takes dtype, device and requires_grad of this tensor.

    Raises:
        ValueError: form "none" where the width shrinks.
    """
    k = P.shape[1]
    if form == "full" or (form == "low-rank" and k > k_next):
        P_next = Q_next[:, :k_next].contiguous()
        return P_next, linear_map(P.T @ P_next, like)
    P_next, U, deficits = align(P, Q_next, k_next)
    rank = 0 if form == "none" else int((deficits > max(tolerance, ROUNDING)).sum())
    if rank == 0 and k == k_next:
        return P_next, None
    A = U[:, :rank] * deficits[:rank].sqrt()
    return P_next, LowRankAdapter(A.to(like), k_next, like.requires_grad)
