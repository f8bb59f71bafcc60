"""Checks for M1 to M3: right ones of three styles, and weak ones, with what they must be told.

A check here is a list of pairs (expected, got) that must be equal, and a way to demand it.
"""

import numpy as np
from answers import right, wrong


def equal(expected, got):
    assert np.allclose(expected, got, rtol=1e-10, atol=1e-10)


def numpy_testing(expected, got):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def raise_value_error(expected, got):
    if expected.shape != got.shape or np.abs(expected - got).max() > 1e-9 * max(1, np.abs(expected).max()):
        raise ValueError("wrong")


def check_of(pairs, demand):
    """The check that all the pairs are equal."""

    def check(candidate, rng):
        for expected, got in pairs(candidate, rng):
            demand(np.asarray(expected), np.asarray(got))

    return check


def draw(rng, D, H, bias=True):
    """W_in, b_in, W_out, b_out."""
    b_in = rng.normal(size=H) if bias else None
    return rng.normal(size=(D, H)), b_in, rng.normal(size=(H, D)), rng.normal(size=D)


def fused_entries(candidate, rng):
    for D, H, bias in ((3, 5, True), (5, 3, False), (4, 4, True)):
        W_in, b_in, W_out, b_out = draw(rng, D, H, bias)
        alpha, beta = rng.normal(size=(2, D))
        W, b, W_writes, b_writes = candidate(W_in, b_in, W_out, b_out, alpha, beta)
        yield np.diag(alpha) @ W_in, W
        yield beta @ W_in + (b_in if bias else 0), b
        yield W_out @ (np.eye(D) - 1 / D), W_writes
        yield b_out @ (np.eye(D) - 1 / D), b_writes


def fused_layers(candidate, rng):
    for D, H, bias in ((2, 3, True), (4, 4, True), (4, 3, False)):
        W_in, b_in, W_out, b_out = draw(rng, D, H, bias)
        alpha, beta = rng.normal(size=(2, D))
        W, b, W_writes, b_writes = candidate(W_in, b_in, W_out, b_out, alpha, beta)
        x, h = rng.normal(size=(9, D)), rng.normal(size=(9, H))
        y = h @ W_out + b_out
        yield (alpha * x + beta) @ W_in + (b_in if bias else 0), x @ W + b
        yield y - y.mean(1)[:, None], h @ W_writes + b_writes


def orthogonal(rng, D):
    return np.linalg.qr(rng.normal(size=(D, D)))[0]


def rotated_entries(candidate, rng):
    for D, H in ((3, 5), (4, 4)):
        weights, Q, Q_next = draw(rng, D, H), orthogonal(rng, D), orthogonal(rng, D)
        W, b, W_writes, b_writes, S = candidate(*weights, Q, Q_next)
        turned_back = (Q @ W, b, W_writes @ Q_next.T, b_writes @ Q_next.T)
        yield from zip((*weights, Q_next), (*turned_back, Q @ S), strict=True)


def rotated_block(candidate, rng):
    for D, H in ((5, 3), (6, 6)):
        (W_in, b_in, W_out, b_out), Q, Q_next = draw(rng, D, H), orthogonal(rng, D), orthogonal(rng, D)
        x = rng.normal(size=(40, D))
        W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out, Q, Q_next)
        z = x @ Q
        yield np.maximum(x @ W_in + b_in, 0), np.maximum(z @ W + b, 0)
        yield (x + np.tanh(x @ W_in + b_in) @ W_out + b_out) @ Q_next, z @ S + np.tanh(z @ W + b) @ W_writes + b_writes


def tokens(rng, N, D):
    return rng.normal(size=(N, D)) * np.arange(1, D + 1) + 1, rng.permutation(N) % 4 > 0


def decomposed(candidate, rng):
    for N, D in ((18, 3), (31, 6)):
        X, mask = tokens(rng, N, D)
        eigenvalues, Q = candidate(X, mask, D)
        yield X[mask].T @ X[mask], Q * eigenvalues @ Q.T
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


for name, first, second in (
    ("m1", fused_entries, fused_layers),
    ("m2", rotated_entries, rotated_block),
    ("m3", decomposed, projected),
):
    pairs = ((first, equal), (second, numpy_testing), (second, raise_value_error))
    right(f"{name}.check", *(check_of(*pair) for pair in pairs))


# Weak checks


def rejects_everything(candidate, rng):
    raise AssertionError("never satisfied")


def accepts_everything(candidate, rng):
    candidate(*draw(rng, 3, 4), *rng.normal(size=(2, 3)))


def biases_always_and_no_squares(candidate, rng):
    (W_in, b_in, W_out, b_out), (alpha, beta) = draw(rng, 3, 4), rng.normal(size=(2, 3))
    W, b, W_writes, b_writes = candidate(W_in, b_in, W_out, b_out, alpha, beta)
    assert np.allclose(W, alpha[:, None] * W_in) and np.allclose(b, beta @ W_in + b_in)
    assert np.allclose(W_writes, W_out - W_out.mean(1)[:, None]) and np.allclose(b_writes, b_out - b_out.mean())


def sometimes_rejects_the_right_one(candidate, rng):
    assert rng.random() < 0.5


def one_rotation_for_both(candidate, rng):
    (W_in, b_in, W_out, b_out), Q = draw(rng, 4, 4), orthogonal(rng, 4)
    W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out, Q, Q)
    assert np.allclose(Q @ W, W_in) and np.allclose(b, b_in) and np.allclose(S, np.eye(4))
    assert np.allclose(W_writes, W_out @ Q) and np.allclose(b_writes, b_out @ Q)


def compares_signs(candidate, rng):
    X, mask = tokens(rng, 30, 5)
    assert np.allclose(candidate(X, mask, 5)[1], np.linalg.svd(X[mask])[2].T)


def content_with_five_digits(candidate, rng):
    for expected, got in decomposed(candidate, rng):
        assert np.allclose(expected, got, rtol=1e-4, atol=1e-3)


RIGHT_ONE = "it raises on the right function"
wrong(
    "m1.check",
    {
        "rejects everything": (rejects_everything, RIGHT_ONE, "AssertionError"),
        "accepts everything": (accepts_everything, "kills 0 of 3 shown and 0 of 5 hidden", "alive: scale_forgotten"),
        "biases always, no squares": (biases_always_and_no_squares, "kills 3 of 3 shown and 3 of 5 hidden"),
        "sometimes rejects the right one": (sometimes_rejects_the_right_one, RIGHT_ONE),
    },
)
one_for_both = "kills 2 of 3 shown and 3 of 5 hidden"
wrong("m2.check", {"one rotation for both": (one_rotation_for_both, one_for_both, "alive: adapter_transposed")})
wrong(
    "m3.check",
    {
        "compares signs": (compares_signs, RIGHT_ONE, "line", "AssertionError"),
        "content with five digits": (content_with_five_digits, "kills 3 of 3 shown and 4 of 5 hidden"),
    },
)
