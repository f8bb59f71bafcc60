"""Answers to A6."""

import numpy as np
from answers import right, wrong

# slice_block

right("a6.slice_block")(lambda Wi, bi, Wo, bo, P, N: [P.T @ Wi, bi.copy(), Wo @ N, bo @ N, P.T @ N])
right("a6.slice_block")(lambda Wi, bi, Wo, bo, P, N: ((Wi.T @ P).T, bi, (N.T @ Wo.T).T, N.T @ bo, (N.T @ P).T))
right("a6.slice_block")(
    lambda Wi, bi, Wo, bo, P, N: (np.dot(P.T, Wi), bi, np.dot(Wo, N), np.dot(bo, N), np.dot(P.T, N))
)
right("a6.slice_block")(
    lambda Wi, bi, Wo, bo, P, N: (
        np.einsum("dk,dh->kh", P, Wi),
        bi,
        np.einsum("hd,dk->hk", Wo, N),
        np.einsum("d,dk->k", bo, N),
        np.einsum("di,dj->ij", P, N),
    )
)
right("a6.slice_block")(
    lambda Wi, bi, Wo, bo, P, N: (
        np.tensordot(P, Wi, (0, 0)),
        bi,
        np.tensordot(Wo, N, 1),
        np.tensordot(bo, N, 1),
        np.tensordot(P, N, (0, 0)),
    )
)


@right("a6.slice_block")
def bias_as_a_row(W_in, b_in, W_out, b_out, P, P_next):
    writes = np.vstack([W_out, b_out]) @ P_next
    reads = P.T @ np.hstack([W_in, P_next])
    H = W_in.shape[1]
    return reads[:, :H], b_in, writes[:-1], writes[-1], reads[:, H:]


@right("a6.slice_block")
def rotate_then_delete(W_in, b_in, W_out, b_out, P, P_next):
    def completed(basis):
        rest = np.linalg.svd(np.eye(len(basis)) - basis @ basis.T)[0][:, : len(basis) - basis.shape[1]]
        return np.column_stack([basis, rest])

    Q, Q_next = completed(P), completed(P_next)
    k, k_next = P.shape[1], P_next.shape[1]
    S = (Q.T @ Q_next)[:k, :k_next]
    return (Q.T @ W_in)[:k], b_in, (W_out @ Q_next)[:, :k_next], (b_out @ Q_next)[:k_next], S


@right("a6.slice_block")
def column_by_column(W_in, b_in, W_out, b_out, P, P_next):
    return (
        np.stack([p @ W_in for p in P.T]),
        b_in,
        np.stack([W_out @ p for p in P_next.T], axis=1),
        np.array([b_out @ p for p in P_next.T]),
        np.array([[p @ q for q in P_next.T] for p in P.T]),
    )


@right("a6.slice_block")
def pseudo_inverse(W_in, b_in, W_out, b_out, P, P_next):
    return (
        np.linalg.pinv(P) @ W_in,
        b_in,
        W_out @ P_next,
        P_next.T.dot(b_out),
        np.linalg.lstsq(P, P_next, rcond=None)[0],
    )


# interleave


def passed(net, X, widths, basis, delete=lambda X, P: X @ P @ P.T, width=None, signal=None):
    """The pass, with its parts to be replaced."""
    D = X.shape[1]

    def normed(x, width):
        return x / np.sqrt((x**2).sum(1, keepdims=True) / width + net["eps"])

    bases = []
    for i, k in enumerate(widths):
        Y = normed(X, D) if signal is None else signal(X)
        P = basis(Y, k)
        bases.append(P)
        if i < len(net["W_in"]):
            X = delete(X, P)
            h = np.tanh(normed(X, width or D if width != "k" else k) @ net["W_in"][i] + net["b_in"][i])
            X = X + h @ net["W_out"][i] + net["b_out"][i]
    return bases


def leading(Y, k):
    return np.linalg.eigh(Y.T @ Y)[1][:, ::-1][:, :k]


right("a6.interleave")(lambda net, X, widths: passed(net, X, widths, lambda Y, k: np.linalg.svd(Y)[2][:k].T))
right("a6.interleave")(lambda net, X, widths: passed(net, X, widths, lambda Y, k: np.linalg.svd(Y.T @ Y)[0][:, :k]))
right("a6.interleave")(lambda net, X, widths: passed(net, X, widths, lambda Y, k: -leading(Y, k)))
right("a6.interleave")(lambda net, X, widths: passed(net, X, widths, lambda Y, k: leading(Y, k)[:, ::-1]))
right("a6.interleave")(
    lambda net, X, widths: passed(net, X, widths, leading, lambda X, P: np.einsum("nd,dk,ek->ne", X, P, P))
)
right("a6.interleave")(lambda net, X, widths: tuple(passed(net, X, widths, turned)))


def turned(Y, k):
    """Another basis of the same span."""
    return leading(Y, k) @ np.linalg.qr(np.random.default_rng(k).normal(size=(k, k)))[0]


@right("a6.interleave")
def really_sliced(net, X, widths):
    D = X.shape[1]

    def components(X, k):
        Y = X / np.sqrt(np.mean(X**2, axis=1, keepdims=True) + net["eps"])
        return leading(Y, k)

    P = components(X, widths[0])
    bases, Z = [P], X @ P
    for W_in, b_in, W_out, b_out, k in zip(
        *(net[n] for n in ("W_in", "b_in", "W_out", "b_out")), widths[1:], strict=True
    ):
        normed = Z / np.sqrt(np.sum(Z**2, axis=1, keepdims=True) / D + net["eps"])
        X = Z @ P.T + np.tanh(normed @ (P.T @ W_in) + b_in) @ W_out + b_out
        P = components(X, k)
        bases.append(P)
        Z = X @ P
    return bases


@right("a6.interleave")
def token_by_token(net, X, widths):
    D = X.shape[1]
    bases = []
    for i, k in enumerate(widths):
        C = np.zeros((D, D))
        for x in X:
            y = x / np.sqrt(x @ x / D + net["eps"])
            C += np.outer(y, y)
        P = np.linalg.eigh(C)[1][:, D - k :]
        bases.append(P)
        if i == len(net["W_in"]):
            return bases
        rows = []
        for x in X:
            x = P @ (P.T @ x)
            y = x / np.sqrt(x @ x / D + net["eps"])
            rows.append(x + np.tanh(y @ net["W_in"][i] + net["b_in"][i]) @ net["W_out"][i] + net["b_out"][i])
        X = np.array(rows)


@right("a6.interleave")
def recursive(net, X, widths):
    P = leading(X / np.sqrt((X * X).mean(1)[:, None] + net["eps"]), widths[0])
    if len(widths) == 1:
        return [P]
    X = X @ (P @ P.T)
    h = np.tanh(X / np.sqrt((X * X).mean(1)[:, None] + net["eps"]) @ net["W_in"][0] + net["b_in"][0])
    rest = {name: value[1:] for name, value in net.items() if name != "eps"} | {"eps": net["eps"]}
    return [P, *recursive(rest, X + h @ net["W_out"][0] + net["b_out"][0], widths[1:])]


# Wrong answers


def sliced(W_in, b_in, W_out, b_out, P, P_next):
    return P.T @ W_in, b_in, W_out @ P_next, b_out @ P_next, P.T @ P_next


@wrong("a6.slice_block", "W_in:", "divided by k")
def divides_by_k(W_in, b_in, W_out, b_out, P, P_next):
    D, k = P.shape
    return np.sqrt(k / D) * (P.T @ W_in), *sliced(W_in, b_in, W_out, b_out, P, P_next)[1:]


@wrong("a6.slice_block", "W_in:", "makes up for a norm that divides by k")
def makes_up_for_division_by_k(W_in, b_in, W_out, b_out, P, P_next):
    D, k = P.shape
    return np.sqrt(D / k) * (P.T @ W_in), *sliced(W_in, b_in, W_out, b_out, P, P_next)[1:]


@wrong("a6.slice_block", "W_in:", "first rotate")
def first_columns_deleted(W_in, b_in, W_out, b_out, P, P_next):
    (D, k), (_, k_next) = P.shape, P_next.shape
    return W_in[D - k :], b_in, W_out[:, D - k_next :], b_out[D - k_next :], np.eye(k, k_next)


@wrong("a6.slice_block", "b_in:", "expected float64 [3], got float64 [1]")
def input_bias_cut(W_in, b_in, W_out, b_out, P, P_next):
    W, _, *rest = sliced(W_in, b_in, W_out, b_out, P, P_next)
    return W, b_in[: P.shape[1]], *rest


@wrong("a6.slice_block", "b_out:", "expected float64 [1], got float64 [2]")
def output_bias_uncut(W_in, b_in, W_out, b_out, P, P_next):
    W, b, W_writes, _, S = sliced(W_in, b_in, W_out, b_out, P, P_next)
    return W, b, W_writes, b_out, S


@wrong("a6.slice_block", "S:", "It is transposed", "b_out ok")
def adapter_transposed(W_in, b_in, W_out, b_out, P, P_next):
    return *sliced(W_in, b_in, W_out, b_out, P, P_next)[:4], P_next.T @ P


@wrong("a6.slice_block", "W_out:", "the basis that the block reads")
def written_in_the_basis_of_the_input(W_in, b_in, W_out, b_out, P, P_next):
    weights = sliced(W_in, b_in, W_out, b_out, P, P_next)
    return *weights[:2], W_out @ P if P.shape == P_next.shape else weights[2], *weights[3:]


@wrong("a6.interleave", "P[1]:", "the dense network's signal")
def of_the_dense_signal(net, X, widths):
    return passed(net, X, widths, leading, lambda X, P: X)


@wrong("a6.interleave", "P[0]:", "the norm's input")
def of_the_norms_input(net, X, widths):
    return passed(net, X, widths, leading, signal=lambda X: X)


@wrong("a6.interleave", "P[1]:", "expected float64 [3, 3], got float64 [3, 2]")
def head_cut(net, X, widths):
    return passed(net, X, [min(k, max(widths[:-1])) for k in widths], leading)


@wrong("a6.interleave", "P[0]:", "carry least")
def smallest_kept(net, X, widths):
    return passed(net, X, widths, lambda Y, k: np.linalg.eigh(Y.T @ Y)[1][:, :k])


@wrong("a6.interleave", "P[0]:", "It is centred")
def centred(net, X, widths):
    return passed(net, X, widths, lambda Y, k: leading(Y - Y.mean(0), k))


@wrong("a6.interleave", "P[1]:", "divided by k", "P[0] ok")
def norm_divides_by_k(net, X, widths):
    return passed(net, X, widths, leading, width="k")


@wrong("a6.interleave", "expected 2 values, P[0], P[1]; got list of 1")
def last_boundary_forgotten(net, X, widths):
    return passed(net, X, widths, leading)[:-1]


@right("a6.slice_block")
def neurons_turned_round(W_in, b_in, W_out, b_out, P, P_next):
    W, b, W_writes, *rest = sliced(W_in, b_in, W_out, b_out, P, P_next)
    return -W[:, ::-1], -b[::-1], -W_writes[::-1], *rest  # tanh is odd
