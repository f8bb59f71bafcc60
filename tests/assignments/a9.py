"""Answers to A9."""

import numpy as np
from answers import right, wrong

right(
    "a9.value_output",
    lambda W_V, W_O, R: (W_V @ R, np.linalg.inv(R) @ W_O),
    lambda W_V, W_O, R: [(R.T @ W_V.T).T, np.linalg.lstsq(R, W_O, rcond=None)[0]],
    lambda W_V, W_O, R: (np.einsum("di,ij->dj", W_V, R), np.linalg.pinv(R) @ W_O),
)
wrong(
    "a9.value_output",
    {
        "transpose": (lambda W_V, W_O, R: (W_V @ R, R.T @ W_O), "W_O:", "R^T is the inverse of a rotation", "W_V ok"),
        "not undone": (lambda W_V, W_O, R: (W_V @ R, R @ W_O), "W_O:", "not by its inverse"),
        "values alone": (lambda W_V, W_O, R: (W_V @ R, W_O), "W_O:", "It is as it was"),
        "values turned by the transpose": (
            lambda W_V, W_O, R: (W_V @ R.T, np.linalg.inv(R).T @ W_O),
            "W_V:",
            "multiplied by R^T",
        ),
    },
)


def complex_pairs(W, angles, factors):
    """Pairs as complex numbers: to rotate is to multiply."""
    z = (W[:, ::2] + 1j * W[:, 1::2]) * np.exp(1j * angles) * factors
    return np.stack([z.real, z.imag], axis=2).reshape(W.shape)


def by_matrices(W, angles, factors):
    blocks = [
        f * np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a, f in zip(angles, factors, strict=True)
    ]
    return np.hstack([W[:, 2 * j : 2 * j + 2] @ block for j, block in enumerate(blocks)])


def column_by_column(W, angles, factors):
    columns = []
    for j, (angle, factor) in enumerate(zip(angles, factors, strict=True)):
        a, b = W[:, 2 * j], W[:, 2 * j + 1]
        columns += [factor * (a * np.cos(angle) - b * np.sin(angle)), factor * (a * np.sin(angle) + b * np.cos(angle))]
    return np.array(columns).T


def halves(W, angles, factors):
    """Columns j and j + d / 2 as a pair, as many models have them; here they are neighbours."""
    a, b = np.split(W, 2, axis=1)
    return np.hstack(
        [factors * (a * np.cos(angles) - b * np.sin(angles)), factors * (a * np.sin(angles) + b * np.cos(angles))]
    )


def pairs(turn, queries=lambda a, s: (a, s), keys=lambda a, s: (a, 1 / s)):
    """The answer, with what is done to queries and to keys to be replaced."""
    return lambda W_Q, W_K, angles, scales: (turn(W_Q, *queries(angles, scales)), turn(W_K, *keys(angles, scales)))


right("a9.rotary_pair", *map(pairs, (complex_pairs, by_matrices, column_by_column)))
wrong(
    "a9.rotary_pair",
    {
        "keys the other way": (pairs(complex_pairs, keys=lambda a, s: (-a, 1 / s)), "W_K:", "the other way", "W_Q ok"),
        "both scaled": (pairs(complex_pairs, keys=lambda a, s: (a, s)), "W_K:", "as the queries are"),
        "keys not scaled": (pairs(complex_pairs, keys=lambda a, s: (a, 1 + 0 * s)), "W_K:", "It is not scaled"),
        "keys not rotated": (pairs(complex_pairs, keys=lambda a, s: (0 * a, 1 / s)), "W_K:", "It is not rotated"),
        "queries alone": (
            lambda W_Q, W_K, angles, scales: (complex_pairs(W_Q, angles, scales), W_K),
            "W_K:",
            "It is as it was",
        ),
        "queries the other way": (pairs(complex_pairs, lambda a, s: (-a, s)), "W_Q:", "the other way"),
        "first half with second half": (
            pairs(halves),
            "W_Q:",
        ),
    },
)


def rotations(theta, n):
    """The matrix R_n: a row x becomes x R_n."""
    return by_matrices(np.eye(2 * len(theta)), n * theta, np.ones(len(theta)))


def by_conditions(distances=4, values=True, scores=True, constant=True):
    """The conditions on a candidate; a wrong answer leaves one out."""

    def answer(A, B, F, G, beta, theta):
        R, d, found = [rotations(theta, n) for n in range(distances)], A.shape[1], []
        for a, b, f, g, c in zip(A, B, F, G, beta, strict=True):
            holds = not values or np.abs(f @ g - np.eye(d)).max() < 1e-9
            holds &= not scores or all(np.abs(a @ R_n @ b.T - R_n).max() < 1e-9 for R_n in R)
            found.append(float(holds and (not constant or np.abs(c).max() < 1e-9)))
        return np.array(found)

    return answer


def by_trying(A, B, F, G, beta, theta, T=5):
    """Attention itself, before and after, on random numbers."""
    rng, d = np.random.default_rng(1), A.shape[1]
    x, Q, K, V, O, b = (rng.normal(size=s) for s in ((T, 7), (7, d), (7, d), (7, d), (d, 7), d))  # noqa: E741

    def attention(Q, K, V, O, b):  # noqa: E741
        y, q, k = [], x @ Q, x @ K + b
        for t in range(T):
            scores = [q[t] @ rotations(theta, t) @ (k[s] @ rotations(theta, s)) / d**0.5 for s in range(t + 1)]
            shares = np.exp(scores) / np.exp(scores).sum()
            y.append(shares @ x[: t + 1] @ V @ O)
        return np.array(y)

    before = attention(Q, K, V, O, b)
    after = [attention(Q @ a, K @ m, V @ f, g @ O, b @ m + c) for a, m, f, g, c in zip(A, B, F, G, beta, strict=True)]
    return np.array([float(np.allclose(y, before, atol=1e-8)) for y in after])


def by_commuting(A, B, F, G, beta, theta):
    """A commutes with R_1, and B^T is its inverse."""
    R, same = rotations(theta, 1), np.eye(A.shape[1])
    inside = np.abs(A @ R - R @ A).max((1, 2)) + np.abs(A @ B.swapaxes(1, 2) - same).max((1, 2))
    return ((inside + np.abs(F @ G - same).max((1, 2)) + np.abs(beta).max(1)) < 1e-9).astype(int)


right("a9.unchanged", by_conditions(), by_trying, by_commuting)
wrong(
    "a9.unchanged",
    {
        "positions forgotten": (by_conditions(distances=1), "unchanged["),
        "values forgotten": (by_conditions(values=False), "unchanged["),
        "scores forgotten": (by_conditions(scores=False), "unchanged["),
        "constants forgotten": (by_conditions(constant=False), "unchanged["),
        "all": (lambda A, *rest: np.ones(6), "unchanged["),
        "none": (lambda A, *rest: np.zeros(6), "unchanged["),
    },
)
