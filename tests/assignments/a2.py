"""Answers to A2."""

import numpy as np
from answers import right, wrong

# rms

right("a2.rms")(lambda x, eps: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps))
right("a2.rms")(lambda x, eps: x * ((x**2).mean(axis=1) + eps)[:, None] ** -0.5)
right("a2.rms")(lambda x, eps: x / np.sqrt(np.linalg.norm(x, axis=1, keepdims=True) ** 2 / x.shape[1] + eps))
right("a2.rms")(lambda x, eps: x / np.sqrt(np.einsum("nd,nd->n", x, x) / x.shape[1] + eps)[:, np.newaxis])
right("a2.rms")(lambda x, eps: (x.T / np.sqrt(np.square(x).mean(1) + eps)).T)
right("a2.rms")(lambda x, eps: np.array([row / (row @ row / len(row) + eps) ** 0.5 for row in x]))
right("a2.rms")(lambda x, eps: np.diag(1 / np.sqrt(np.diag(x @ x.T) / x.shape[1] + eps)) @ x)
right("a2.rms")(lambda x, eps: np.apply_along_axis(lambda r: r / np.sqrt(np.mean(r**2) + eps), 1, x))


@right("a2.rms")
def loops(x, eps):
    y = x.copy()
    for row in y:
        total = 0.0
        for value in row:
            total += value**2
        row /= np.sqrt(total / len(row) + eps)
    return y


# haar


@right("a2.haar")
def signs_from_where(G):
    Q, R = np.linalg.qr(G)
    return Q * np.where(np.diag(R) < 0, -1.0, 1.0)


@right("a2.haar")
def signs_as_a_matrix(G):
    Q, R = np.linalg.qr(G)
    return Q @ np.diag(np.diag(R) / np.abs(np.diag(R)))


@right("a2.haar")
def columns_one_by_one(G):
    Q, R = np.linalg.qr(G)
    for i in range(len(G)):
        if R[i, i] < 0:
            Q[:, i] = -Q[:, i]
    return Q


@right("a2.haar")
def gram_schmidt(G):
    Q = np.zeros_like(G)
    for i in range(len(G)):
        column = G[:, i].copy()
        for _ in range(2):  # twice is enough
            column -= Q[:, :i] @ (Q[:, :i].T @ column)
        Q[:, i] = column / np.linalg.norm(column)
    return Q


@right("a2.haar")
def all_signs_negative(G):
    Q, R = np.linalg.qr(G)
    return -Q * np.sign(np.diag(R))


@right("a2.haar")
def transposed(G):
    Q, R = np.linalg.qr(G.T)
    return (Q * np.sign(np.diag(R))).T


@right("a2.haar")
def polar_factor(G):
    U, _, Vt = np.linalg.svd(G)
    return U @ Vt


@right("a2.haar")
def cholesky(G):
    Q = G
    for _ in range(2):  # the second time takes away the rounding of the first
        Q = np.linalg.solve(np.linalg.cholesky(Q.T @ Q), Q.T).T
    return Q


@right("a2.haar")
def last_column_first(G):
    Q, R = np.linalg.qr(G[:, ::-1])
    return (Q * np.sign(np.diag(R)))[:, ::-1]


# counterexample


@right("a2.counterexample")
def householder(D):
    v = np.eye(D)[0] - np.ones(D) / np.sqrt(D)
    return np.eye(D)[:1], np.eye(D) - 2 * np.outer(v, v) / (v @ v)


def plane_rotation(D, angle):
    Q = np.eye(D)
    Q[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return Q


right("a2.counterexample")(lambda D: (np.arange(D, dtype=float)[None], plane_rotation(D, 0.7)))
right("a2.counterexample")(lambda D: (np.eye(D), plane_rotation(D, 1.0)))
right("a2.counterexample")(lambda D: (100 * np.eye(D)[:1], plane_rotation(D, np.pi / 3)))
right("a2.counterexample")(lambda D: (np.ones((1, D)), np.diag([-1.0] + [1.0] * (D - 1))))


@right("a2.counterexample")
def drawn_at_random(D):
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, D)), np.linalg.qr(rng.normal(size=(D, D)))[0]


@right("a2.counterexample")
def searched(D):
    def layernorm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)

    rng = np.random.default_rng(1)
    while True:
        x, (Q, _) = rng.normal(size=(1, D)), np.linalg.qr(rng.normal(size=(D, D)))
        if np.abs(layernorm(x @ Q) @ Q.T - layernorm(x)).max() > 0.2:
            return x, Q


@right("a2.counterexample")
def mean_direction_to_a_unit_vector(D):
    basis = np.column_stack([np.ones(D), np.eye(D)[:, 1:]])
    Q = np.linalg.qr(basis)[0].T
    return np.eye(D)[:1], Q * -np.sign(Q[0, 0])


@right("a2.counterexample")
def cosine_transform(D):
    i = np.arange(D)
    Q = np.cos(np.pi * (2 * i[:, None] + 1) * i / (2 * D)) * np.where(i == 0, 1, np.sqrt(2)) / np.sqrt(D)
    return np.array([[1.0] * D, [1.0] + [0.0] * (D - 1)]), Q


# Wrong answers


@wrong("a2.rms", "rms(x)[", "standard deviation")
def std_for_rms(x, eps):
    return x / np.sqrt(x.var(axis=1, keepdims=True) + eps)


@wrong("a2.rms", "rms(x)[", "This is LayerNorm")
def layernorm(x, eps):
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + eps)


@wrong("a2.rms", "rms(x)[", "eps stands outside")
def eps_outside_the_root(x, eps):
    return x / (np.sqrt(np.mean(x**2, axis=1, keepdims=True)) + eps)


@wrong("a2.rms", "rms(x)[", "over the rows")
def norm_over_tokens(x, eps):
    return x / np.sqrt(np.mean(x**2, axis=0, keepdims=True) + eps)


@wrong("a2.rms", "rms(x)[", "sqrt(D) is lost")
def sqrt_of_the_width_lost(x, eps):
    return x / np.sqrt(np.sum(x**2, axis=1, keepdims=True) + eps)


@wrong("a2.rms", "rms(x)[", "eps is lost")
def eps_lost(x, eps):
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))


@wrong("a2.haar", "Q", "LAPACK's choice")
def no_sign_fix(G):
    return np.linalg.qr(G)[0]


@wrong("a2.haar", "Q", "Q's rows")
def sign_fix_on_rows(G):
    Q, R = np.linalg.qr(G)
    return np.sign(np.diag(R))[:, None] * Q


@wrong("a2.haar", "Q", "One column is turned round")
def determinant_forced_to_1(G):
    Q, R = np.linalg.qr(G)
    Q = Q * np.sign(np.diag(R))
    Q[:, 0] *= np.linalg.det(Q)
    return Q


@wrong("a2.haar", "Q", "orthonormal")
def gaussian(G):
    return G / np.sqrt(len(G))


@wrong("a2.counterexample", "LayerNorm(x Q) Q^T", "permutes")
def permutation(D):
    return np.arange(D, dtype=float)[None], np.eye(D)[::-1].copy()


@wrong("a2.counterexample", "LayerNorm(x Q) Q^T", "less than 0.1")
def rotates_too_little(D):
    return np.arange(D, dtype=float)[None], plane_rotation(D, 0.01)


@wrong("a2.counterexample", "Q:", "orthonormal")
def stretches(D):
    return np.eye(D), 2 * np.eye(D)


@right("a2.counterexample")
def whole_numbers(D):
    return np.ones((1, D), dtype=int), np.diag([-1] + [1] * (D - 1))
