"""Checks for M1 to M3: right ones of many styles, and weak ones, with what they must be told.

A check here is a list of pairs (expected, got) that must be equal, and a way to demand it.
"""

import numpy as np
from answers import right, wrong

# Ways to demand that two arrays are equal


def assert_allclose(expected, got):
    assert np.allclose(expected, got, rtol=1e-10, atol=1e-10)


def numpy_testing(expected, got):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def raise_value_error(expected, got):
    if expected.shape != got.shape or np.abs(expected - got).max() > 1e-9 * max(1, np.abs(expected).max()):
        raise ValueError("wrong")


def number_by_number(expected, got):
    assert expected.shape == got.shape
    for a, b in zip(expected.ravel(), got.ravel(), strict=True):
        assert abs(a - b) <= 1e-9 * max(1, abs(a)), f"{a} is not {b}"


DEMANDS = (assert_allclose, numpy_testing, raise_value_error, number_by_number)


def check_of(pairs, demand):
    """The check that all the pairs are equal."""

    def check(candidate, rng):
        for expected, got in pairs(candidate, rng):
            demand(np.asarray(expected), np.asarray(got))

    return check


def collect(question, *some_pairs):
    for pairs in some_pairs:
        for demand in DEMANDS:
            right(question)(check_of(pairs, demand))


# M1


def block(rng, D, H, bias):
    W_in, W_out = rng.normal(size=(D, H)), rng.normal(size=(H, D))
    return W_in, rng.normal(size=H) if bias else None, W_out, *rng.normal(size=(3, D))


def fused_entries(candidate, rng):
    for D, H, bias in ((3, 5, True), (5, 3, False), (4, 4, True)):
        W_in, b_in, W_out, b_out, alpha, beta = block(rng, D, H, bias)
        W, b, W_writes, b_writes = candidate(W_in, b_in, W_out, b_out, alpha, beta)
        yield np.diag(alpha) @ W_in, W
        yield beta @ W_in + (b_in if bias else 0), b
        yield W_out @ (np.eye(D) - 1 / D), W_writes
        yield b_out @ (np.eye(D) - 1 / D), b_writes


def fused_layers(candidate, rng):
    for D in (2, 4):
        for H in (3, 4):
            for bias in (True, False):
                W_in, b_in, W_out, b_out, alpha, beta = block(rng, D, H, bias)
                W, b, W_writes, b_writes = candidate(W_in, b_in, W_out, b_out, alpha, beta)
                x, h = rng.normal(size=(9, D)), rng.normal(size=(9, H))
                x = x / np.linalg.norm(x, axis=1, keepdims=True)
                y = h @ W_out + b_out
                yield (alpha * x + beta) @ W_in + (b_in if bias else 0), x @ W + b
                yield y - y.mean(1)[:, None], h @ W_writes + b_writes


collect("m1.check", fused_entries, fused_layers)


# M2


def orthogonal(rng, D):
    return np.linalg.qr(rng.normal(size=(D, D)))[0]


def rotated_entries(candidate, rng):
    for D, H in ((3, 5), (4, 4)):
        W_in, b_in, W_out, b_out = (
            rng.normal(size=(D, H)),
            rng.normal(size=H),
            *np.split(rng.normal(size=(H + 1, D)), [H]),
        )
        Q, Q_next = orthogonal(rng, D), orthogonal(rng, D)
        W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out[0], Q, Q_next)
        yield W_in, Q @ W
        yield b_in, b
        yield W_out, W_writes @ Q_next.T
        yield b_out[0], b_writes @ Q_next.T
        yield Q_next, Q @ S


def rotated_block(candidate, rng):
    for D, H in ((5, 3), (6, 6)):
        W_in, b_in = rng.normal(size=(D, H)), rng.normal(size=H)
        W_out, b_out = rng.normal(size=(H, D)), rng.normal(size=D)
        Q, Q_next = orthogonal(rng, D), orthogonal(rng, D)
        x = rng.normal(size=(40, D))
        W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out, Q, Q_next)
        z = x @ Q
        yield np.maximum(x @ W_in + b_in, 0), np.maximum(z @ W + b, 0)
        yield (x + np.tanh(x @ W_in + b_in) @ W_out + b_out) @ Q_next, z @ S + np.tanh(z @ W + b) @ W_writes + b_writes


collect("m2.check", rotated_entries, rotated_block)


# M3


def tokens(rng, N, D):
    return rng.normal(size=(N, D)) * np.arange(1, D + 1) + 1, rng.permutation(N) % 4 > 0


def decomposed(candidate, rng):
    for N, D in ((18, 3), (31, 6)):
        X, mask = tokens(rng, N, D)
        C = X[mask].T @ X[mask]
        eigenvalues, Q = candidate(X, mask, D)
        yield C, Q * eigenvalues @ Q.T
        yield np.eye(D), Q.T @ Q
        yield np.sort(eigenvalues)[::-1], eigenvalues
        yield 2, candidate(X, mask, 2)[1].shape[1]


def projected(candidate, rng):
    X, mask = tokens(rng, 30, 5)
    _, sigma, Vt = np.linalg.svd(X[mask], full_matrices=False)
    for k in (1, 3):
        eigenvalues, P = candidate(X, mask, k)
        yield sigma**2, eigenvalues
        yield Vt[:k].T @ Vt[:k], P @ P.T


collect("m3.check", decomposed, projected)


# Weak checks


@wrong("m1.check", "it raises on the right function", "AssertionError")
def rejects_everything(candidate, rng):
    raise AssertionError("never satisfied")


@wrong("m1.check", "kills 0 of 3 shown and 0 of 5 hidden", "still alive: scale_forgotten")
def accepts_everything(candidate, rng):
    candidate(*block(rng, 3, 4, True))


@wrong("m1.check", "kills 3 of 3 shown and 3 of 5 hidden")
def biases_always_and_no_squares(candidate, rng):
    W_in, b_in, W_out, b_out, alpha, beta = block(rng, 3, 4, True)
    W, b, W_writes, b_writes = candidate(W_in, b_in, W_out, b_out, alpha, beta)
    assert np.allclose(W, alpha[:, None] * W_in) and np.allclose(b, beta @ W_in + b_in)
    assert np.allclose(W_writes, W_out - W_out.mean(1)[:, None]) and np.allclose(b_writes, b_out - b_out.mean())


@wrong("m1.check", "it raises on the right function")
def sometimes_rejects_the_right_one(candidate, rng):
    assert rng.random() < 0.5


@wrong("m2.check", "kills 2 of 3 shown and 3 of 5 hidden", "still alive: adapter_transposed")
def one_rotation_for_both(candidate, rng):
    W_in, b_in, W_out, b_out = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=(4, 4)), rng.normal(size=4)
    Q = orthogonal(rng, 4)
    W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out, Q, Q)
    assert np.allclose(Q @ W, W_in) and np.allclose(b, b_in) and np.allclose(S, np.eye(4))
    assert np.allclose(W_writes, W_out @ Q) and np.allclose(b_writes, b_out @ Q)


@wrong("m3.check", "it raises on the right function", "line", "AssertionError")
def compares_signs(candidate, rng):
    X, mask = tokens(rng, 30, 5)
    assert np.allclose(candidate(X, mask, 5)[1], np.linalg.svd(X[mask])[2].T)


@wrong("m3.check", "kills 3 of 3 shown and 4 of 5 hidden")
def content_with_five_digits(candidate, rng):
    for expected, got in decomposed(candidate, rng):
        assert np.allclose(expected, got, rtol=1e-4, atol=1e-3)
