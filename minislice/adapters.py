"""Residual adapters (section 3.3): what carries the signal from one block's basis to the next.

A block reads the signal in the basis P (D x k) of one boundary and writes it in the basis P' (D x k') of the next. The
paper's adapter between them is S = P^T P', a k x k' matrix (`full`). If k = k', the two subspaces of R^D meet in at
least 2k - D dimensions. So at least 2k - D of the singular values of S = U diag(c) V^T, the cosines of the principal
angles between the subspaces, are 1. Replacing P' by P' V U^T keeps its subspace, so the sliced network computes the
same function, and the adapter becomes symmetric, with the deficits d = 1 - c:

    S  ->  U diag(c) U^T  =  I - U_r diag(d_r) U_r^T,        r <= D - k directions whose cosine is below 1

- `low-rank` stores A = U_r diag(d_r)^(1/2) and computes x - (x A) A^T: k r parameters instead of k^2. Its rank is r
- `none` leaves the adapter out: 0 parameters, an approximation; the principal components of later boundaries are
  computed with its error in place, so that they make up for some of it

Where the width grows (k < k', as at the last boundary when the head isn't sliced), the aligned adapter appends k' - k
zeros, and r <= D - k'. Where it shrinks, the adapter stays full.
"""

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from .architecture.blocks import LowRankAdapter
from .rotation import linear_map

FORMS = ("full", "low-rank", "none")
ROUNDING = 1e-12  # a cosine deficit below this is an angle of zero
SMALL_COSINE = 0.1  # dividing by a cosine below this would amplify rounding


def align(
    P: Float64[Tensor, "D k"], Q_next: Float64[Tensor, "D D"], k_next: int
) -> tuple[Float64[Tensor, "D k_next"], Float64[Tensor, "k m"], Float64[Tensor, " m"]]:
    """P_next, a basis of the first k_next >= k columns of Q_next, for which P^T P_next is [I - U diag(d) U^T, 0].

    Also U and the deficits d = 1 - cosine, descending, of the m = min(k, D - k_next) principal angles that may differ
    from zero. They come from what the next boundary deletes: with R the last D - k_next columns of Q_next, the singular
    values of P^T R = U diag(s) W^T are the sines of these angles. For small angles they are more exact than cosines.
    """
    D, k = P.shape
    if k_next == D:  # nothing is deleted: an orthogonal matrix whose first k columns are P
        P_next = torch.cat([P, torch.linalg.qr(P, mode="complete").Q[:, k:]], dim=1)
        return P_next, P.new_zeros(k, 0), P.new_zeros(0)
    together = P.T @ Q_next
    S, sines = together[:, :k_next], together[:, k_next:]  # P^T P_next, and P^T R
    U = left_singular_vectors(sines)
    cosines = (U.T @ S).norm(dim=1)
    deficits = (U.T @ sines).square().sum(1) / (1 + cosines)  # 1 - cos = sin^2 / (1 + cos)
    if k == k_next and cosines.min() > SMALL_COSINE:
        # U V^T = S + U diag(1/c - 1) U^T S, the orthogonal factor of S, without decomposing all of it
        rotation = S + U @ ((1 / cosines - 1)[:, None] * (U.T @ S))
    else:
        rotation = orthogonal_factor(S)
    order = deficits.argsort(descending=True)
    return Q_next[:, :k_next] @ rotation.T, U[:, order], deficits[order]


def left_singular_vectors(matrix: Float64[Tensor, "k r"]) -> Float64[Tensor, "k m"]:
    """The m = min(k, r) left singular vectors by descending singular value, for singular values up to 1.

    They come from the eigenvectors W of matrix^T matrix: the columns of matrix W are orthogonal, and QR makes them unit
    vectors. LAPACK's singular value decomposition may not converge where many singular values are equal; this does.
    """
    W = torch.linalg.eigh(matrix.T @ matrix).eigenvectors.flip(1)
    return torch.linalg.qr(matrix @ W[:, : matrix.shape[0]]).Q


def orthogonal_factor(S: Float64[Tensor, "k k_next"]) -> Float64[Tensor, "k_next k_next"]:
    """U V^T of S = U diag(c) V^T, and below it the other k_next - k rows of V^T; needs k <= k_next."""
    k = len(S)
    try:
        U, _, V_T = torch.linalg.svd(S, full_matrices=True)
    except torch.linalg.LinAlgError:  # LAPACK failed where many singular values differ from 1 by rounding alone
        U = left_singular_vectors(S)
        V, R = torch.linalg.qr(S.T @ U, mode="complete")
        V[:, :k] *= torch.where(R.diagonal() < 0, -1.0, 1.0)  # singular values aren't negative
        V_T = V.T
    return torch.cat([U @ V_T[:k], V_T[k:]])


def make_adapter(
    P: Float64[Tensor, "D k"],
    Q_next: Float64[Tensor, "D D"],
    k_next: int,
    form: str,
    tolerance: float,
    like: Tensor,
) -> tuple[Float64[Tensor, "D k_next"], nn.Module | None, Float64[Tensor, "k m"]]:
    """Returns (P_next, adapter, lost): the next basis, aligned unless the adapter is full; None for the identity.

    An approximate adapter is S + [lost lost^T, 0]: the columns of `lost` are the directions that it leaves out, each
    times d^(1/2).

    Args:
        Q_next: an orthogonal matrix; the next basis spans its first `k_next` columns.
        form: one of `FORMS`. Where the width shrinks, S has no aligned form: "low-rank" makes a full adapter, and
            `SlicingOptions` has refused "none".
        tolerance: "low-rank" drops the directions whose cosine deficit 1 - c is at most this; 0 is exact.
        like: the adapter takes dtype, device and requires_grad of this tensor.
    """
    k = P.shape[1]
    if form == "full" or (form == "low-rank" and k > k_next):
        P_next = Q_next[:, :k_next].contiguous()
        return P_next, linear_map(P.T @ P_next, like), P.new_zeros(k, 0)
    P_next, U, deficits = align(P, Q_next, k_next)
    turned = int((deficits > ROUNDING).sum())  # directions at an angle
    r = 0 if form == "none" else int((deficits > max(tolerance, ROUNDING)).sum())
    A, lost = (U[:, part] * deficits[part].sqrt() for part in (slice(0, r), slice(r, turned)))
    if r == 0 and k == k_next:
        return P_next, None, lost
    return P_next, LowRankAdapter(A.to(like), k_next, like.requires_grad), lost


def rank(adapter: nn.Module | None) -> int:
    """The rank of an adapter: r if it is low-rank, the smaller width if it is full, 0 if there is none."""
    if adapter is None:
        return 0
    return min(adapter.weight.shape) if isinstance(adapter, nn.Linear) else adapter.rank
