"""Answers to A2."""

import numpy as np
from answers import right, wrong


def square(x, axis=1):
    return np.mean(x**2, axis=axis, keepdims=True)


right(
    "a2.rms",
    lambda x, eps: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps),
    lambda x, eps: np.array([row / (row @ row / len(row) + eps) ** 0.5 for row in x]),
    lambda x, eps: np.diag(1 / np.sqrt(np.diag(x @ x.T) / x.shape[1] + eps)) @ x,
)
wrong(
    "a2.rms",
    {
        "standard deviation": (
            lambda x, eps: x / np.sqrt(x.var(axis=1, keepdims=True) + eps),
            "rms(x):",
            "standard deviation",
        ),
        "LayerNorm": (
            lambda x, eps: (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + eps),
            "rms(x):",
            "This is LayerNorm",
        ),
        "eps outside the root": (lambda x, eps: x / (np.sqrt(square(x)) + eps), "rms(x):", "eps stands outside"),
        "over the tokens": (lambda x, eps: x / np.sqrt(square(x, 0) + eps), "rms(x):", "over the rows"),
        "sqrt(D) lost": (lambda x, eps: x / np.sqrt(x.shape[1] * square(x) + eps), "rms(x):", "sqrt(D) is lost"),
        "eps lost": (lambda x, eps: x / np.sqrt(square(x)), "rms(x):", "eps is lost"),
    },
)


def sign_fix(G, sign=1):
    Q, R = np.linalg.qr(G)
    return sign * Q * np.sign(np.diag(R))


def polar_factor(G):
    U, _, Vt = np.linalg.svd(G)
    return U @ Vt


def gram_schmidt(G):
    Q = np.zeros_like(G)
    for i in range(len(G)):
        column = G[:, i].copy()
        for _ in range(2):  # twice is enough
            column -= Q[:, :i] @ (Q[:, :i].T @ column)
        Q[:, i] = column / np.linalg.norm(column)
    return Q


def determinant_forced_to_1(G):
    Q = sign_fix(G)
    Q[:, 0] *= np.linalg.det(Q)
    return Q


def sign_fix_on_rows(G):
    Q, R = np.linalg.qr(G)
    return np.sign(np.diag(R))[:, None] * Q


right(
    "a2.haar",
    *(gram_schmidt, polar_factor, lambda G: sign_fix(G, -1), lambda G: sign_fix(G.T).T),
    lambda G: sign_fix(G[:, ::-1])[:, ::-1],  # the last column first
)
wrong(
    "a2.haar",
    {
        "no sign fix": (lambda G: np.linalg.qr(G)[0], "Q", "LAPACK's choice"),
        "sign fix on rows": (sign_fix_on_rows, "Q", "Q's rows"),
        "determinant forced to 1": (determinant_forced_to_1, "Q", "One column is turned round"),
        "a Gaussian": (lambda G: G / np.sqrt(len(G)), "Q", "orthonormal"),
    },
)


def plane_rotation(D, angle):
    Q = np.eye(D)
    Q[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return Q


def householder(D):
    v = np.eye(D)[0] - np.ones(D) / np.sqrt(D)
    return np.eye(D)[:1], np.eye(D) - 2 * np.outer(v, v) / (v @ v)


def row(D):
    return np.arange(D, dtype=float)[None]


right(
    "a2.counterexample",
    householder,
    lambda D: (np.eye(D), plane_rotation(D, 1.0)),
    lambda D: (np.ones((1, D), dtype=int), np.diag([-1] + [1] * (D - 1))),  # whole numbers
)
wrong(
    "a2.counterexample",
    {
        "a permutation": (lambda D: (row(D), np.eye(D)[::-1].copy()), "LayerNorm(x Q) Q^T", "permutes"),
        "rotates too little": (lambda D: (row(D), plane_rotation(D, 0.01)), "LayerNorm(x Q) Q^T", "less than 0.1"),
        "stretches": (lambda D: (np.eye(D), 2 * np.eye(D)), "Q:", "orthonormal"),
    },
)
