"""Answers to A5."""

import numpy as np
from answers import right, wrong

# cosines

right("a5.cosines")(lambda P, R: np.linalg.svd(P.T @ R)[1])
right("a5.cosines")(lambda P, R: np.linalg.svd(R.T @ P, compute_uv=False))
right("a5.cosines")(lambda P, R: np.minimum(np.linalg.svd(P.T @ R, compute_uv=False), 1.0))
right("a5.cosines")(lambda P, R: np.linalg.svd(P @ P.T @ R @ R.T, compute_uv=False)[: P.shape[1]])
right("a5.cosines")(lambda P, R: np.sqrt(np.abs(np.linalg.eigvalsh(P.T @ R @ R.T @ P)))[::-1])
right("a5.cosines")(lambda P, R: np.sqrt(np.clip(np.linalg.eigvalsh(R.T @ P @ P.T @ R)[::-1], 0, 1)))
right("a5.cosines")(lambda P, R: np.sqrt(np.abs(np.sort(np.linalg.eigvals(P.T @ R @ R.T @ P).real)[::-1])))
right("a5.cosines")(lambda P, R: np.sort(np.abs(np.linalg.eigvalsh(both(P.T @ R))))[::-2].copy())
right("a5.cosines")(lambda P, R: 1 - np.linalg.svd(P - R @ (R.T @ P), compute_uv=False)[::-1] ** 2 / one_more(P, R))


def both(S):
    """A symmetric matrix whose eigenvalues are S's singular values, and their negatives."""
    zero = np.zeros_like(S)
    return np.block([[zero, S], [S.T, zero]])


def one_more(P, R):
    """1 + c, from 1 - c = s^2 / (1 + c)."""
    return 1 + np.linalg.svd(P.T @ R, compute_uv=False)


# align


def full_svd(S):
    """U, V."""
    U, _, Vt = np.linalg.svd(S)
    return U, Vt.T


@right("a5.align")
def blocks(P, R):
    U, V = full_svd(P.T @ R)
    k = P.shape[1]
    return R @ np.hstack([V[:, :k] @ U.T, V[:, k:]])


@right("a5.align")
def of_the_transpose(P, R):
    V, U = full_svd(R.T @ P)
    turn = np.eye(R.shape[1])
    turn[: len(U), : len(U)] = U.T
    return R @ (V @ turn)


@right("a5.align")
def other_signs(P, R):
    U, V = full_svd(P.T @ R)
    k = P.shape[1]
    signs = np.where(np.arange(R.shape[1]) % 2, 1.0, -1.0)
    U, V = U * signs[:k], V * signs
    return R @ np.concatenate([V[:, :k] @ U.T, V[:, k:]], axis=1)


@right("a5.align")
def einsum(P, R):
    U, V = full_svd(np.einsum("dk,dm->km", P, R))
    turn = np.zeros((R.shape[1],) * 2)
    k = P.shape[1]
    turn[:k] = np.einsum("mi,ki->km", V[:, :k], U)
    turn[k:] = V[:, k:].T
    return np.einsum("dm,jm->dj", R, turn)


@right("a5.align")
def nearest_and_the_rest(P, R):
    k, k_next = P.shape[1], R.shape[1]
    U, _, Vt = np.linalg.svd(R @ (R.T @ P), full_matrices=False)
    first = U @ Vt
    rest = np.linalg.svd(R @ R.T - first @ first.T)[0][:, : k_next - k]
    return np.column_stack([first, rest])


@right("a5.align")
def rest_in_another_order(P, R):
    aligned = blocks(P, R)
    k = P.shape[1]
    return np.concatenate([aligned[:, :k], -aligned[:, k:][:, ::-1]], axis=1)


@right("a5.align")
def square_root(P, R):
    S = P.T @ R
    values, vectors = np.linalg.eigh(S @ S.T)
    first = S.T @ (vectors / np.sqrt(values)) @ vectors.T
    rest = np.linalg.svd(np.eye(R.shape[1]) - first @ first.T)[0][:, : R.shape[1] - P.shape[1]]
    return R @ np.hstack([first, rest])


@right("a5.align")
def by_loops(P, R):
    U, V = full_svd(P.T @ R)
    k, k_next = P.shape[1], R.shape[1]
    turn = np.zeros((k_next, k_next))
    for i in range(k_next):
        for j in range(k_next):
            turn[i, j] = sum(V[i, m] * U[j, m] for m in range(k)) if j < k else V[i, j]
    return R @ turn


# low_rank


def decomposed(P, R):
    """Deficits 1 - c, descending, and their directions."""
    cosines, U = np.linalg.eigh(P.T @ R[:, : P.shape[1]])
    return np.maximum(1 - cosines, 0), U


@right("a5.low_rank")
def allowed_rank(P, R):
    d, U = decomposed(P, R)
    return (U * np.sqrt(d))[:, : len(P) - R.shape[1]]


@right("a5.low_rank")
def rank_by_tolerance(P, R):
    d, U = decomposed(P, R)
    return U[:, d > 1e-11] * np.sqrt(d[d > 1e-11])


@right("a5.low_rank")
def of_the_difference(P, R):
    k = P.shape[1]
    d, U = np.linalg.eigh(np.eye(k) - P.T @ R[:, :k])
    keep = np.argsort(-d)[: min(k, len(P) - R.shape[1])]
    return U[:, keep] @ np.diag(np.sqrt(np.clip(d[keep], 0, None)))


@right("a5.low_rank")
def singular_vectors(P, R):
    k = P.shape[1]
    U, d, _ = np.linalg.svd(np.eye(k) - P.T @ R[:, :k])
    r = min(k, len(P) - R.shape[1])
    return np.einsum("kr,r->kr", U[:, :r], np.sqrt(d[:r]))


@right("a5.low_rank")
def other_signs_and_order(P, R):
    d, U = decomposed(P, R)
    r = min(P.shape[1], len(P) - R.shape[1])
    return -(U[:, :r] * np.sqrt(d[:r]))[:, ::-1]


@right("a5.low_rank")
def turned_columns(P, R):
    A = allowed_rank(P, R)
    return A @ np.linalg.qr(np.random.default_rng(0).normal(size=(A.shape[1],) * 2))[0]


@right("a5.low_rank")
def column_by_column(P, R):
    d, U = decomposed(P, R)
    r = min(P.shape[1], len(P) - R.shape[1])
    return np.array([U[:, i] * d[i] ** 0.5 for i in range(r)]).reshape(r, len(d)).T


@right("a5.low_rank")
def nan_to_zero(P, R):
    k = P.shape[1]
    c, U = np.linalg.eigh(P.T @ R[:, :k])
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(U * np.sqrt(1 - c))[:, : len(P) - R.shape[1]]


# Wrong answers


@wrong("a5.cosines", "c^2:", "squares of the cosines")
def squared(P, R):
    return np.linalg.svd(P.T @ R, compute_uv=False) ** 2


@wrong("a5.cosines", "c^2", "They are ascending")
def ascending(P, R):
    return np.linalg.svd(P.T @ R, compute_uv=False)[::-1]


@wrong("a5.cosines", "c^2:", "angles, not their cosines")
def angles(P, R):
    return np.arccos(np.minimum(np.linalg.svd(P.T @ R, compute_uv=False), 1))


@wrong("a5.cosines", "c^2:", "between single columns")
def between_columns(P, R):
    return np.sort(np.abs(np.sum(P * R, axis=0)))[::-1]


def padded(P, R, turn):
    """R with its first k columns turned."""
    k = P.shape[1]
    return np.hstack([R[:, :k] @ turn, R[:, k:]])


@wrong("a5.align", "P^T R':", "turned the wrong way", "R' R'^T ok")
def u_vt_for_v_ut(P, R):
    k = P.shape[1]
    U, V = full_svd(P.T @ R)
    return R @ U @ V.T if R.shape[1] == k else blocks(P, R)


@wrong("a5.align", "P^T R':", "svd returns V^T", "R' R'^T ok")
def v_for_v_transposed(P, R):
    k = P.shape[1]
    U, _, V = np.linalg.svd(P.T @ R)
    return R @ V @ U.T if R.shape[1] == k else blocks(P, R)


@wrong("a5.align", "R': R' R'^T is not R R^T", "what P spans")
def p_itself(P, R):
    return P if P.shape == R.shape else blocks(P, R)


@wrong("a5.align", "P^T R':", "nothing is aligned")
def not_aligned(P, R):
    return R.copy()


@wrong("a5.align", "P^T R':", "its last k_next - k columns are not zero")
def not_padded(P, R):
    k = P.shape[1]
    if R.shape[1] == k:
        return blocks(P, R)
    U, V = full_svd(P.T @ R[:, :k])
    return padded(P, R, V @ U.T)


@wrong("a5.align", "line", "ValueError")
def square_only(P, R):
    U, _, Vt = np.linalg.svd(P.T @ R)
    return R @ (Vt.T @ U.T)


@wrong("a5.align", "R':", "expected float64 [3, 2], got float64 [3, 1]")
def cut_to_k(P, R):
    U, _, Vt = np.linalg.svd(P.T @ R, full_matrices=False)
    return R @ Vt.T @ U.T


@wrong("a5.align", "P^T R':", "negative eigenvalue")
def one_column_turned_round(P, R):
    U, V = full_svd(P.T @ R)
    k = P.shape[1]
    U[:, -1] *= -1
    return R @ np.hstack([V[:, :k] @ U.T, V[:, k:]])


@wrong("a5.low_rank", "I - A A^T", "The root is missing")
def no_root(P, R):
    d, U = decomposed(P, R)
    return (U * d)[:, : len(P) - R.shape[1]]


@wrong("a5.low_rank", "I - A A^T", "roots of the cosines")
def root_of_c(P, R):
    d, U = decomposed(P, R)
    return (U * np.sqrt(np.maximum(1 - d, 0)))[:, : len(P) - R.shape[1]]


@wrong("a5.low_rank", "I - A A^T", "smallest 1 - c")
def smallest_kept(P, R):
    d, U = decomposed(P, R)
    r = min(P.shape[1], len(P) - R.shape[1])
    return (U * np.sqrt(d))[:, P.shape[1] - r :]


@wrong("a5.low_rank", "A: NaN")
def nan_where_c_is_above_1(P, R):
    c, U = np.linalg.eigh(P.T @ R[:, : P.shape[1]])
    with np.errstate(invalid="ignore"):
        return (U * np.sqrt(1 - c))[:, : len(P) - R.shape[1]]


@wrong("a5.low_rank", "A:", "columns", "A A^T ok")
def no_direction_dropped(P, R):
    d, U = decomposed(P, R)
    return U * np.sqrt(d)


@wrong("a5.low_rank", "line", "LinAlgError")
def square_adapters_only(P, R):
    k = P.shape[1]
    d, U = np.linalg.eigh(np.eye(k) - P.T @ R)
    return U[:, ::-1][:, : len(P) - k] * np.sqrt(np.maximum(d[::-1], 0))[: len(P) - k]


@wrong("a5.low_rank", "I - A A^T", "sines")
def sines(P, R):
    d, U = decomposed(P, R)
    return (U * np.sqrt(1 - (1 - d) ** 2))[:, : len(P) - R.shape[1]]
