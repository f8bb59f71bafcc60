"""Answers to A6."""

import numpy as np
from answers import right, wrong


def sliced(W_in, b_in, W_out, b_out, P, P_next):
    return P.T @ W_in, b_in, W_out @ P_next, b_out @ P_next, P.T @ P_next


def rotate_then_delete(W_in, b_in, W_out, b_out, P, P_next):
    def completed(basis):
        rest = np.linalg.svd(np.eye(len(basis)) - basis @ basis.T)[0][:, : len(basis) - basis.shape[1]]
        return np.column_stack([basis, rest])

    Q, Q_next = completed(P), completed(P_next)
    k, k_next = P.shape[1], P_next.shape[1]
    S = (Q.T @ Q_next)[:k, :k_next]
    return [(Q.T @ W_in)[:k], b_in, (W_out @ Q_next)[:, :k_next], (b_out @ Q_next)[:k_next], S]


def column_by_column(W_in, b_in, W_out, b_out, P, P_next):
    return (
        np.stack([p @ W_in for p in P.T]),
        b_in,
        np.stack([W_out @ p for p in P_next.T], axis=1),
        np.array([b_out @ p for p in P_next.T]),
        np.linalg.lstsq(P, P_next, rcond=None)[0],
    )


def neurons_turned_round(*arguments):
    W_in, b_in, W_out, *rest = sliced(*arguments)
    return -W_in[:, ::-1], -b_in[::-1], -W_out[::-1], *rest  # tanh is odd


def but(place, change):
    """A right answer, but for one place: a function of the arguments."""

    def answer(*arguments):
        weights = list(sliced(*arguments))
        weights[place] = change(*arguments)
        return tuple(weights)

    return answer


def first_columns_deleted(W_in, b_in, W_out, b_out, P, P_next):
    (D, k), (_, k_next) = P.shape, P_next.shape
    return W_in[D - k :], b_in, W_out[:, D - k_next :], b_out[D - k_next :], np.eye(k, k_next)


right("a6.slice_block", rotate_then_delete, column_by_column, neurons_turned_round)
wrong(
    "a6.slice_block",
    {
        "divides by k": (
            but(0, lambda W_in, b_in, W_out, b_out, P, N: np.sqrt(P.shape[1] / len(P)) * (P.T @ W_in)),
            "W_in:",
            "divided by k",
        ),
        "makes up for division by k": (
            but(0, lambda W_in, b_in, W_out, b_out, P, N: np.sqrt(len(P) / P.shape[1]) * (P.T @ W_in)),
            "W_in:",
            "makes up for a norm that divides by k",
        ),
        "first columns deleted": (first_columns_deleted, "W_in:", "first rotate"),
        "input bias cut": (
            but(1, lambda W_in, b_in, W_out, b_out, P, N: b_in[: P.shape[1]]),
            "b_in:",
            "expected float64 [3], got float64 [1]",
        ),
        "output bias uncut": (
            but(3, lambda W_in, b_in, W_out, b_out, P, N: b_out),
            "b_out:",
            "expected float64 [1], got float64 [2]",
        ),
        "adapter transposed": (
            but(4, lambda W_in, b_in, W_out, b_out, P, N: N.T @ P),
            "S:",
            "It is transposed",
            "b_out ok",
        ),
        "written in the basis of the input": (
            but(2, lambda W_in, b_in, W_out, b_out, P, N: W_out @ (P if P.shape == N.shape else N)),
            "W_out:",
            "the basis that the block reads",
        ),
    },
)


def leading(Y, k):
    return np.linalg.eigh(Y.T @ Y)[1][:, ::-1][:, :k]


def passed(basis=leading, delete=lambda X, P: X @ P @ P.T, width=lambda D, k: D, signal=None, widths=lambda w: w):
    """The pass, with its parts to be replaced."""

    def answer(net, X, given):
        def normed(x, width):
            return x / np.sqrt((x**2).sum(1, keepdims=True) / width + net["eps"])

        bases, D = [], X.shape[1]
        for i, k in enumerate(widths(given)):
            bases.append(basis(normed(X, D) if signal is None else signal(X), k))
            if i < len(net["W_in"]):
                X = delete(X, bases[-1])
                h = np.tanh(normed(X, width(D, k)) @ net["W_in"][i] + net["b_in"][i])
                X = X + h @ net["W_out"][i] + net["b_out"][i]
        return bases

    return answer


def turned(Y, k):
    """Another basis of the same span."""
    return leading(Y, k) @ np.linalg.qr(np.random.default_rng(k).normal(size=(k, k)))[0]


def really_sliced(net, X, widths):
    D = X.shape[1]

    def components(X, k):
        return leading(X / np.sqrt(np.mean(X**2, axis=1, keepdims=True) + net["eps"]), k)

    P = components(X, widths[0])
    bases, Z = [P], X @ P
    blocks = zip(*(net[name] for name in ("W_in", "b_in", "W_out", "b_out")), widths[1:], strict=True)
    for W_in, b_in, W_out, b_out, k in blocks:
        normed = Z / np.sqrt(np.sum(Z**2, axis=1, keepdims=True) / D + net["eps"])
        X = Z @ P.T + np.tanh(normed @ (P.T @ W_in) + b_in) @ W_out + b_out
        P = components(X, k)
        bases.append(P)
        Z = X @ P
    return tuple(bases)


right("a6.interleave", passed(lambda Y, k: np.linalg.svd(Y)[2][:k].T), passed(turned), really_sliced)
wrong(
    "a6.interleave",
    {
        "of the dense signal": (passed(delete=lambda X, P: X), "P[1]:", "the dense network's signal"),
        "of the norm's input": (passed(signal=lambda X: X), "P[0]:", "the norm's input"),
        "head cut": (
            passed(widths=lambda w: [min(k, max(w[:-1])) for k in w]),
            "P[1]:",
            "expected float64 [3, 3], got float64 [3, 2]",
        ),
        "smallest kept": (passed(lambda Y, k: np.linalg.eigh(Y.T @ Y)[1][:, :k]), "P[0]:", "carry least"),
        "centred": (passed(lambda Y, k: leading(Y - Y.mean(0), k)), "P[0]:", "It is centred"),
        "norm divides by k": (passed(width=lambda D, k: k), "P[1]:", "divided by k", "P[0] ok"),
        "last boundary forgotten": (
            lambda *arguments: passed()(*arguments)[:-1],
            "expected 2 values, P[0], P[1]; got list of 1",
        ),
    },
)
