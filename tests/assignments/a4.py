"""Answers to A4."""

import itertools

import numpy as np
from answers import right, wrong


def tokens_of(batches, masks):
    return np.concatenate(batches)[np.concatenate(masks)]


def energy(x):
    return x.T @ x


def token_by_token(batches, masks):
    rows = [row for x, mask in zip(batches, masks, strict=True) for row, token in zip(x, mask, strict=True) if token]
    return sum(np.outer(row, row) for row in rows)


def from_singular_values(batches, masks):
    _, sigma, Vt = np.linalg.svd(tokens_of(batches, masks), full_matrices=False)
    return (Vt.T * sigma**2) @ Vt


right(
    "a4.second_moment",
    *(token_by_token, from_singular_values),
    lambda batches, masks: sum((x * m[:, None]).T @ x for x, m in zip(batches, masks, strict=True)),
)
wrong(
    "a4.second_moment",
    {
        "centred": (
            lambda batches, masks: energy(tokens_of(batches, masks) - tokens_of(batches, masks).mean(axis=0)),
            "C:",
            "It is centred",
        ),
        "a mean for each batch": (
            lambda batches, masks: sum(energy(x[m]) / m.sum() for x, m in zip(batches, masks, strict=True) if m.any()),
            "C:",
            "a mean for each batch",
        ),
        "padding counted": (lambda batches, masks: sum(map(energy, batches)), "C:", "Padding is counted"),
        "sums in float32": (
            lambda batches, masks: energy(tokens_of(batches, masks).astype(np.float32)).astype(float),
            "C:",
            "float32",
        ),
        "result in float32": (
            lambda batches, masks: energy(tokens_of(batches, masks).astype(np.float32)),
            "C: expected float64 [2, 2], got float32 [2, 2]",
        ),
        "a mean over tokens": (
            lambda batches, masks: energy(tokens_of(batches, masks)) / len(tokens_of(batches, masks)),
            "C:",
            "divided by the number of tokens",
        ),
    },
)


def svd_of_C(C):
    _, sigma, Vt = np.linalg.svd(C)
    return [sigma, Vt.T]


def other_signs(C):
    eigenvalues, Q = np.linalg.eigh(-C)
    return -eigenvalues, -Q * np.sign(Q[0] + 1e-300)


def jacobi(C):
    A, Q = C.copy(), np.eye(len(C))
    for i, j in 12 * list(itertools.combinations(range(len(C)), 2)):
        angle = 0.5 * np.arctan2(2 * A[i, j], A[i, i] - A[j, j])
        J = np.eye(len(C))
        J[[i, j], [i, j]] = np.cos(angle)
        J[i, j], J[j, i] = -np.sin(angle), np.sin(angle)
        A, Q = J.T @ A @ J, Q @ J
    order = np.argsort(np.diag(A))[::-1]
    return np.diag(A)[order], Q[:, order]


def decomposed(values=lambda v: v[::-1], vectors=lambda Q: Q[:, ::-1]):
    """Eigenvalues and eigenvectors, each changed."""

    def answer(C):
        eigenvalues, Q = np.linalg.eigh(C)
        return values(eigenvalues), vectors(Q)

    return answer


right("a4.pca", svd_of_C, other_signs, jacobi)
wrong(
    "a4.pca",
    {
        "ascending": (np.linalg.eigh, "lambda:", "It is ascending", "Q ok"),
        "only eigenvalues turned round": (decomposed(vectors=lambda Q: Q), "lambda, Q:", "opposite order"),
        "rows for columns": (decomposed(vectors=lambda Q: Q[:, ::-1].T), "lambda, Q:", "eigenvectors are the rows"),
        "sigma for its square": (
            decomposed(values=lambda v: np.sqrt(np.maximum(v[::-1], 0))),
            "lambda, Q:",
            "singular values of the signal",
        ),
        "not normalised": (decomposed(vectors=lambda Q: 2 * Q[:, ::-1]), "Q:", "not orthonormal"),
    },
)


def while_loop(eigenvalues, share):
    k, held = 0, 0.0
    while held < share * np.sum(eigenvalues):
        held += eigenvalues[k]
        k += 1
    return k


def short(eigenvalues, share):
    """How many sums of the first components are below the share."""
    return np.sum(np.cumsum(eigenvalues) < share * np.sum(eigenvalues))


right(
    "a4.width",
    while_loop,
    lambda eigenvalues, share: np.argmax(np.cumsum(eigenvalues) >= share * eigenvalues.sum()) + 1,
    lambda eigenvalues, share: next(
        k for k in range(1, len(eigenvalues) + 1) if eigenvalues[:k].sum() >= share * eigenvalues.sum()
    ),
)
wrong(
    "a4.width",
    {
        "one more": (
            lambda eigenvalues, share: int(np.sum(np.cumsum(eigenvalues) <= share * np.sum(eigenvalues))) + 1,
            "k:",
            "k - 1 would do",
        ),
        "one less": (lambda *arguments: max(1, int(short(*arguments))), "k", "hold less"),
        "a float": (lambda *arguments: float(short(*arguments) + 1), "k:", "expected an int, got float"),
    },
)
