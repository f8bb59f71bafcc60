"""A right answer to each question that leaves a choice, computed in another way than the folder `answers` does.

Signs, another basis of a span, the order of neurons, zeros for no biases: these choose otherwise.
"""

import copy
import itertools

import numpy as np


def turn(n):
    return np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]


def a1_fuse_reader(W, b, alpha, beta):
    def layer(x):
        y = (x * alpha + (0 if beta is None else beta)) @ W
        return y if b is None else y + b

    bias = layer(np.zeros((1, len(W))))[0]
    return [layer(np.eye(len(W))) - bias, bias]  # zeros where there is no bias


def a1_fuse(net):
    """In place, on a deep copy; then rotated, with readers that are centred as well, and with zeros for no biases."""
    new = copy.deepcopy({name: net[name] for name in net if name not in ("alpha", "beta")})
    head = new["W_embd"].T.copy() if new["W_head"] is None else new["W_head"]
    beta = 0 * net["alpha"] if net["beta"] is None else net["beta"]
    new["b_head"] = beta[-1] @ head
    new["b_in"] = np.einsum("bd,bdh->bh", beta[:-1], net["W_in"]) + (0 if net["b_in"] is None else net["b_in"])
    new["W_head"] = head * net["alpha"][-1][:, None]
    new["W_in"] *= net["alpha"][:-1][:, :, None]
    Q = turn(len(head))
    for name in ("W_in", "W_head"):
        new[name] = Q.T @ (new[name] - (new[name].mean(-2, keepdims=True) if net["norm"] == "LayerNorm" else 0))
    for name in ("W_embd", "W_pos", "W_out", "b_out"):
        if new[name] is not None:
            new[name] = (new[name] - (new[name].mean(-1, keepdims=True) if net["norm"] == "LayerNorm" else 0)) @ Q
    return new


def a2_haar(G):
    """The polar factor."""
    U, _, Vt = np.linalg.svd(G)
    return U @ Vt


def a2_counterexample(D):
    return np.ones((1, D), dtype=int), np.diag([-1] + [1] * (D - 1))  # whole numbers


def a3_rotate(weights, Q):
    """Block by block, with the neurons in another order and one bias for both writers."""
    new, S = copy.deepcopy(weights), [np.linalg.solve(before, after) for before, after in itertools.pairwise(Q)]
    for name in ("W_embd", "W_pos"):
        new[name] = None if weights[name] is None else np.einsum("nd,de->ne", weights[name], Q[0])
    for i in range(len(S)):
        new["W_in"][i] = np.linalg.inv(Q[i]) @ weights["W_in"][i][:, ::-1]
        new["b_in"][i] = weights["b_in"][i][::-1]
        new["W_out"][i] = (Q[i + 1].T @ weights["W_out"][i][::-1].T).T
        if weights["W_out2"] is not None:
            new["W_out2"][i] = weights["W_out2"][i][::-1] @ Q[i + 1]
            new["b_out"][i] += new["b_out2"][i]
            new["b_out2"][i] = 0
        new["b_out"][i] = new["b_out"][i] @ Q[i + 1]
    new["W_head"] = (weights["W_head"].T @ Q[-1]).T
    return [new, np.array(S)]


def a4_pca(C):
    _, sigma, Vt = np.linalg.svd(C)
    return [sigma, -Vt.T]


def a5_align(P, R):
    U, _, Vt = np.linalg.svd(R @ (R.T @ P), full_matrices=False)
    rest = np.linalg.svd(R @ R.T - U @ Vt @ (U @ Vt).T)[0][:, : R.shape[1] - P.shape[1]]
    return np.column_stack([U @ Vt, -rest[:, ::-1]])


def a5_low_rank(P, R):
    """The rank by a tolerance, and the columns turned."""
    deficits, U = np.linalg.eigh(np.eye(P.shape[1]) - P.T @ R[:, : P.shape[1]])
    A = U[:, deficits > 1e-11] * np.sqrt(deficits[deficits > 1e-11])
    return A @ turn(A.shape[1])


def a6_slice_block(W_in, b_in, W_out, b_out, P, P_next):
    """Rotated, deleted, and the neurons turned round, for tanh is odd."""

    def completed(basis):
        return np.column_stack([basis, np.linalg.svd(np.eye(len(basis)) - basis @ basis.T)[0]])[:, : len(basis)]

    Q, Q_next, k, k_next = completed(P), completed(P_next), P.shape[1], P_next.shape[1]
    W_out, b_out = (W_out @ Q_next)[:, :k_next], (b_out @ Q_next)[:k_next]
    return [-(Q.T @ W_in)[:k, ::-1], -b_in[::-1], -W_out[::-1], b_out, (Q.T @ Q_next)[:k, :k_next]]


def a6_interleave(net, X, widths):
    """Really sliced; other bases of the same spans."""
    D, bases = X.shape[1], []

    def components(X, k):
        Y = X / np.sqrt(np.mean(X**2, axis=1, keepdims=True) + net["eps"])
        return np.linalg.svd(Y)[2][:k].T @ turn(k)

    for i, k in enumerate(widths):
        P = components(X, k)
        bases.append(P)
        if i < len(net["W_in"]):
            Z = X @ P
            normed = Z / np.sqrt(np.sum(Z**2, axis=1, keepdims=True) / D + net["eps"])
            h = np.tanh(normed @ (P.T @ net["W_in"][i]) + net["b_in"][i])
            X = Z @ P.T + h @ net["W_out"][i] + net["b_out"][i]
    return tuple(bases)


def a7_gib(parameters, bits):
    return np.array(parameters / 8 * bits / (1 << 30))


def m2_check(candidate, rng):
    for D, H in ((5, 3), (6, 6)):
        W_in, b_in, W_out, b_out, x = (rng.normal(size=size) for size in ((D, H), H, (H, D), D, (40, D)))
        Q, Q_next = (np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(2))
        W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out, Q, Q_next)
        rotated = x @ Q @ S + np.tanh(x @ Q @ W + b) @ W_writes + b_writes
        if np.abs((x + np.tanh(x @ W_in + b_in) @ W_out + b_out) @ Q_next - rotated).max() > 1e-9:
            raise ValueError("wrong")
