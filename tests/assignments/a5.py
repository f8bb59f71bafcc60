"""Answers to A5."""

import numpy as np
from answers import right, wrong


def singular(P, R):
    return np.linalg.svd(P.T @ R, compute_uv=False)


right(
    "a5.cosines",
    lambda P, R: np.minimum(np.linalg.svd(R.T @ P)[1], 1.0),
    lambda P, R: np.sqrt(np.clip(np.linalg.eigvalsh(R.T @ P @ P.T @ R)[::-1], 0, 1)),
    lambda P, R: np.linalg.svd(P @ P.T @ R @ R.T, compute_uv=False)[: P.shape[1]],
)
wrong(
    "a5.cosines",
    {
        "squared": (lambda P, R: singular(P, R) ** 2, "c^2:", "squares of the cosines"),
        "ascending": (lambda P, R: singular(P, R)[::-1], "c^2", "They are ascending"),
        "angles": (lambda P, R: np.arccos(np.minimum(singular(P, R), 1)), "c^2:", "angles, not their cosines"),
        "between columns": (
            lambda P, R: np.sort(np.abs(np.sum(P * R, axis=0)))[::-1],
            "c^2:",
            "between single columns",
        ),
    },
)


def turned(P, R, signs=1.0):
    """The aligned basis; `signs` of the columns of U, or of all of them."""
    U, _, Vt = np.linalg.svd(P.T @ R)
    k = P.shape[1]
    return R @ np.hstack([Vt.T[:, :k] @ (U * signs).T, Vt.T[:, k:]])


def nearest_and_the_rest(P, R):
    U, _, Vt = np.linalg.svd(R @ (R.T @ P), full_matrices=False)
    rest = np.linalg.svd(R @ R.T - U @ Vt @ (U @ Vt).T)[0][:, : R.shape[1] - P.shape[1]]
    return np.column_stack([U @ Vt, rest])


def rest_in_another_order(P, R):
    k = P.shape[1]
    return np.concatenate([turned(P, R)[:, :k], -turned(P, R)[:, k:][:, ::-1]], axis=1)


def if_square(change):
    """A right answer, but for subspaces of one dimension."""
    return lambda P, R: change(P, R, *np.linalg.svd(P.T @ R)[::2]) if P.shape == R.shape else turned(P, R)


def not_padded(P, R):
    k = P.shape[1]
    U, _, Vt = np.linalg.svd(P.T @ R[:, :k])
    return np.hstack([R[:, :k] @ (Vt.T @ U.T), R[:, k:]])


def cut_to_k(P, R):
    U, _, Vt = np.linalg.svd(P.T @ R, full_matrices=False)
    return R @ Vt.T @ U.T


def square_only(P, R):
    U, _, Vt = np.linalg.svd(P.T @ R)
    return R @ (Vt.T @ U.T)


right("a5.align", turned, nearest_and_the_rest, rest_in_another_order)
wrong(
    "a5.align",
    {
        "U V^T": (if_square(lambda P, R, U, Vt: R @ U @ Vt), "P^T R':", "turned the wrong way", "R' R'^T ok"),
        "V for V^T": (if_square(lambda P, R, U, Vt: R @ Vt @ U.T), "P^T R':", "svd returns V^T", "R' R'^T ok"),
        "P itself": (if_square(lambda P, R, U, Vt: P), "R': R' R'^T is not R R^T", "what P spans"),
        "not aligned": (lambda P, R: R.copy(), "P^T R':", "nothing is aligned"),
        "not padded": (not_padded, "P^T R':", "its last k_next - k columns are not zero"),
        "square only": (square_only, "line", "ValueError"),
        "cut to k": (cut_to_k, "R':", "expected float64 [3, 2], got float64 [3, 1]"),
        "one column turned round": (
            lambda P, R: turned(P, R, np.append(np.ones(P.shape[1] - 1), -1.0)),
            "P^T R':",
            "negative eigenvalue",
        ),
    },
)


def scaled(weight, first=lambda k, r: slice(r)):
    """Eigenvectors times a function of 1 - c (descending), and which of them."""

    def answer(P, R):
        k = P.shape[1]
        cosines, U = np.linalg.eigh(P.T @ R[:, :k])
        with np.errstate(invalid="ignore"):
            return (U * weight(1 - cosines))[:, first(k, min(k, len(P) - R.shape[1]))]

    return answer


def root(deficits):
    return np.sqrt(np.maximum(deficits, 0))


def rank_by_tolerance(P, R):
    A = scaled(root, lambda k, r: slice(None))(P, R)
    return A[:, np.sum(A**2, axis=0) > 1e-11]


def turned_columns(P, R):
    A = scaled(root)(P, R)
    return A @ np.linalg.qr(np.random.default_rng(0).normal(size=(A.shape[1],) * 2))[0]


def square_adapters_only(P, R):
    k = P.shape[1]
    d, U = np.linalg.eigh(np.eye(k) - P.T @ R)
    return U[:, ::-1][:, : len(P) - k] * root(d[::-1])[: len(P) - k]


right("a5.low_rank", scaled(root), rank_by_tolerance, turned_columns)
wrong(
    "a5.low_rank",
    {
        "no root": (scaled(lambda d: np.maximum(d, 0)), "I - A A^T", "The root is missing"),
        "root of c": (scaled(lambda d: root(1 - d)), "I - A A^T", "roots of the cosines"),
        "smallest kept": (scaled(root, lambda k, r: slice(k - r, None)), "I - A A^T", "smallest 1 - c"),
        "NaN where c is above 1": (scaled(np.sqrt), "A: NaN"),
        "no direction dropped": (scaled(root, lambda k, r: slice(None)), "A:", "columns", "A A^T ok"),
        "square adapters only": (square_adapters_only, "line", "LinAlgError"),
        "sines": (scaled(lambda d: root(1 - (1 - d) ** 2)), "I - A A^T", "sines"),
    },
)
