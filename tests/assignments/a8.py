"""Answers to A8."""

import numpy as np
from answers import right, wrong


def moment(H, w):
    return np.einsum("t,ti,tj->ij", w**2, H, H)


right(
    "a8.second_moment",
    *(moment, lambda H, w: sum(np.outer(w_t * h, w_t * h) for h, w_t in zip(H, w, strict=True))),
    lambda H, w: H.T @ np.diag(w**2) @ H,
)
wrong(
    "a8.second_moment",
    {
        "not weighted": (lambda H, w: H.T @ H, "C:", "The tokens are not weighted"),
        "weight not squared": (lambda H, w: H.T @ (H * w[:, None]), "C:", "not squared"),
        "mean": (lambda H, w: moment(H, w) / len(H), "C:", "C is a sum"),
        "centred": (lambda H, w: moment(H - H.mean(0), w), "C:", "It is centred"),
    },
)


def inverse(C, ridge):
    return np.linalg.inv(C + ridge * np.identity(len(C)))


def by_deleting(C, W, ridge):
    """The least error, with the other rows solved for: each score is a least-squares problem."""
    n, costs = len(C), []
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        A = C + ridge * np.eye(n)
        schur = A[i, i] - A[i, rest] @ np.linalg.solve(A[np.ix_(rest, rest)], A[rest, i])
        costs.append(schur * W[i] @ W[i])
    return np.array(costs)


def by_eigenvectors(C, W, ridge):
    values, Q = np.linalg.eigh(C)
    return np.einsum("nd,nd->n", W, W) / (Q**2 @ (1 / (values + ridge)))


right(
    "a8.scores",
    *(by_deleting, by_eigenvectors),
    lambda C, W, ridge: np.linalg.norm(W, axis=1) ** 2 / inverse(C, ridge).diagonal(),
)
wrong(
    "a8.scores",
    {
        "without the inverse": (
            lambda C, W, ridge: (W**2).sum(1) * np.diag(C + ridge * np.eye(len(C))),
            "scores:",
            "without the inverse",
        ),
        "multiplied": (lambda C, W, ridge: (W**2).sum(1) * np.diag(inverse(C, ridge)), "scores:", "is divided by it"),
        "norm": (lambda C, W, ridge: np.linalg.norm(W, axis=1) / np.diag(inverse(C, ridge)), "scores:", "not squared"),
        "without the ridge": (
            lambda C, W, ridge: (W**2).sum(1) / np.diag(inverse(C, 0)),
            "scores:",
            "The ridge is missing",
        ),
        "leverage": (lambda C, W, ridge: 1 / np.diag(inverse(C, ridge)), "scores:", "W is left out"),
    },
)


def parts(C, kept):
    M = np.setdiff1d(np.arange(len(C)), kept)
    return M, C[np.ix_(kept, kept)], C[np.ix_(kept, M)]


def stacked(C, W, ridge, kept):
    """The same sum of squares as one least-squares problem, with a root of C for H."""
    root = np.linalg.cholesky(C).T
    A = np.vstack([root[:, kept], np.sqrt(ridge) * np.eye(len(kept))])
    return np.linalg.lstsq(A, np.vstack([root @ W, np.sqrt(ridge) * W[kept]]), rcond=None)[0]


def from_the_inverse(C, W, ridge, kept):
    A, (M, *_) = inverse(C, ridge), parts(C, kept)
    return W[kept] - A[np.ix_(kept, M)] @ np.linalg.solve(A[np.ix_(M, M)], W[M])


def towards_what_was(C, W, ridge, kept):
    _, C_KK, _ = parts(C, kept)
    return np.linalg.inv(C_KK + ridge * np.eye(len(kept))) @ (C[kept] @ W + ridge * W[kept])


def added(C, W, ridge, kept):
    return towards_what_was(C, W, ridge, kept) - W[kept]


def with_wrong_rows(C, W, ridge, kept):
    """W_K in the place of W_M, as many rows as there are."""
    M, C_KK, C_KM = parts(C, kept)
    return W[kept] + np.linalg.solve(C_KK + ridge * np.eye(len(kept)), C_KM @ W[kept][: len(M)])


right("a8.solve", stacked, from_the_inverse, towards_what_was)
wrong(
    "a8.solve",
    {
        "plain deletion": (lambda C, W, ridge, kept: W[kept], "W:", "This is plain deletion"),
        "ridge towards zero": (
            lambda C, W, ridge, kept: np.linalg.solve(parts(C, kept)[1] + ridge * np.eye(len(kept)), C[kept] @ W),
            "W:",
            "pulls towards zero",
        ),
        "without the ridge": (lambda C, W, ridge, kept: stacked(C, W, 0.0, kept), "W:", "The ridge is missing"),
        "only what is added": (added, "W:", "without W_K"),
        "the other sign": (lambda *given: given[1][given[3]] - added(*given), "W:", "the wrong sign"),
        "W_K in the place of W_M": (with_wrong_rows, "W:", "Hint: what must the kept neurons write"),
        "ridge twice": (
            lambda C, W, ridge, kept: np.linalg.solve(
                parts(C, kept)[1] + ridge * np.eye(len(kept)), C[kept] @ W + 2 * ridge * W[kept]
            ),
            "W:",
            "inside twice",
        ),
    },
)


def thinned(score=by_eigenvectors, solve=stacked, once=False, first=False, worst=False):
    """Neurons deleted one by one, with its parts to be replaced."""

    def answer(C, W, ridge, count):
        kept, V = np.arange(len(C)), W
        if once:
            kept = np.sort(score(C, W, ridge).argsort()[count:])
            return kept, solve(C, W, ridge, kept)
        for _ in range(count):
            costs = score(C[np.ix_(kept, kept)], W[kept] if first else V, ridge)
            kept = np.delete(kept, costs.argmax() if worst else costs.argmin())
            V = solve(C, W, ridge, kept)
        return kept, V

    return answer


def with_one_inverse(C, W, ridge, count):
    """The inverse and W are updated in place, as the package does it."""
    A, W, left = inverse(C, ridge), W.copy(), np.ones(len(C), dtype=bool)
    for _ in range(count):
        costs = np.where(left, (W**2).sum(1) / np.where(left, np.diag(A), 1), np.inf)
        i = costs.argmin()
        W -= np.outer(A[:, i], W[i]) / A[i, i]
        A -= np.outer(A[:, i], A[i]) / A[i, i]
        left[i] = False
    return np.flatnonzero(left), W[left]


right("a8.thin", thinned(), thinned(by_deleting, from_the_inverse), with_one_inverse)
wrong(
    "a8.thin",
    {
        "scored once": (thinned(once=True), "kept:"),
        "scored with the first W": (thinned(first=True), "kept:"),
        "scores without the inverse": (
            thinned(lambda C, W, ridge: (W**2).sum(1) * (np.diag(C) + ridge)),
            "kept:",
        ),
        "the best deleted": (thinned(worst=True), "kept:", "most important"),
        "not solved": (thinned(solve=lambda C, W, ridge, kept: W[kept]), "", ""),
        "kept in another order": (
            lambda *given: tuple(part[::-1].copy() for part in thinned()(*given)),
            "kept: first difference",
        ),
    },
)
