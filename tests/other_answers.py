"""A right answer to every question, computed in another way than `notebooks/assignments/answers` does.

Where the question leaves a choice (signs, another basis of a span, the order of neurons), these choose otherwise.
"""

import copy
import itertools

import numpy as np


def turn(n):
    """An orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))[0]


def a1_center(D):
    return D * np.cov(np.eye(D), bias=True)


def a1_fuse_reader(W, b, alpha, beta):
    def layer(x):
        y = (x * alpha + (0 if beta is None else beta)) @ W
        return y if b is None else y + b

    bias = layer(np.zeros((1, len(W))))[0]
    return [layer(np.eye(len(W))) - bias, bias]  # zeros where there is no bias


def a1_fuse_writer(W, b):
    return (W.T - W.mean(axis=1)).T, b @ a1_center(len(b))


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


def a2_rms(x, eps):
    return np.diag(1 / np.sqrt(np.diag(x @ x.T) / x.shape[1] + eps)) @ x


def a2_haar(G):
    """The polar factor."""
    U, _, Vt = np.linalg.svd(G)
    return U @ Vt


def a2_counterexample(D):
    return np.ones((1, D), dtype=int), np.diag([-1] + [1] * (D - 1))  # whole numbers


def a3_rotate(weights, Q):
    """Block by block, with the neurons in another order and one bias for both writers."""
    new, S = copy.deepcopy(weights), [np.linalg.solve(before, behind) for before, behind in itertools.pairwise(Q)]
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


def a4_second_moment(batches, masks):
    _, sigma, Vt = np.linalg.svd(np.concatenate(batches)[np.concatenate(masks)], full_matrices=False)
    return (Vt.T * sigma**2) @ Vt


def a4_pca(C):
    _, sigma, Vt = np.linalg.svd(C)
    return [sigma, -Vt.T]


def a4_width(eigenvalues, share):
    return np.argmax(np.cumsum(eigenvalues) >= share * eigenvalues.sum()) + 1


def a5_cosines(P, R):
    return np.sqrt(np.clip(np.linalg.eigvalsh(R.T @ P @ P.T @ R)[::-1], 0, 1))


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


def a7_parameters(shapes, k, form):
    H = np.array(shapes["blocks"])
    ends = np.append(np.full(len(H) - 1, k), shapes["D"])
    ranks = {"full": ends, "low-rank": np.minimum(k, shapes["D"] - ends), "none": 0 * ends}[form]
    total = (shapes["V"] + shapes["T"]) * k + shapes["V"] * shapes["D"] + k * H[:, 0].sum() + H[:, 1] @ ends
    return total + (H[:, 0].sum() + ends.sum()) * shapes["biases"] + k * ranks.sum()


def a7_flops(shapes, k, form):
    D = shapes["D"]
    matrices = [(D, shapes["V"])]
    for (H_in, H_out), n in zip(reversed(shapes["blocks"]), [D] + [k] * len(shapes["blocks"]), strict=False):
        A = (k, min(k, D - n))
        matrices += [(k, H_in), (H_out, n)] + {"full": [(k, n)], "low-rank": [A, A[::-1]], "none": []}[form]
    return 2 * sum(np.prod(shape) for shape in matrices)


def a7_gib(parameters, bits):
    return np.array(parameters / 8 * bits / (1 << 30))


def a7_break_even(n):
    return 1 - max(np.roots([1, n, -n]))


def a8_second_moment(H, w):
    return np.einsum("t,ti,tj->ij", w**2, H, H)


def a8_scores(C, W, ridge):
    values, Q = np.linalg.eigh(C)
    return np.einsum("nd,nd->n", W, W) / (Q**2 @ (1 / (values + ridge)))


def a8_solve(C, W, ridge, kept):
    """The same sum of squares as one least-squares problem, with a root of C for H."""
    root = np.linalg.cholesky(C).T
    A = np.vstack([root[:, kept], np.sqrt(ridge) * np.eye(len(kept))])
    return np.linalg.lstsq(A, np.vstack([root @ W, np.sqrt(ridge) * W[kept]]), rcond=None)[0]


def a8_thin(C, W, ridge, count):
    """The inverse and W are updated in place, as the package does it."""
    A, W, left = np.linalg.inv(C + ridge * np.identity(len(C))), W.copy(), np.ones(len(C), dtype=bool)
    for _ in range(count):
        i = np.where(left, (W**2).sum(1) / np.where(left, np.diag(A), 1), np.inf).argmin()
        W -= np.outer(A[:, i], W[i]) / A[i, i]
        A -= np.outer(A[:, i], A[i]) / A[i, i]
        left[i] = False
    return np.flatnonzero(left), W[left]


def a9_value_output(W_V, W_O, R):
    return [(R.T @ W_V.T).T, np.linalg.pinv(R) @ W_O]


def a9_rotary_pair(W_Q, W_K, angles, scales):
    """Pairs as complex numbers: to rotate is to multiply."""
    turned = []
    for W, factors in ((W_Q, scales), (W_K, 1 / scales)):
        z = (W[:, ::2] + 1j * W[:, 1::2]) * np.exp(1j * angles) * factors
        turned.append(np.stack([z.real, z.imag], axis=2).reshape(W.shape))
    return turned


def a9_unchanged(A, B, F, G, beta, theta):
    """A commutes with R_1, and B^T is its inverse."""
    same = np.eye(A.shape[1])
    R = np.kron(np.diag(np.cos(theta)), np.eye(2)) + np.kron(np.diag(np.sin(theta)), [[0, 1], [-1, 0]])
    apart = np.abs(A @ R - R @ A) + np.abs(A @ B.swapaxes(1, 2) - same) + np.abs(F @ G - same)
    return ((apart.max((1, 2)) + np.abs(beta).max(1)) < 1e-9).astype(int)


def m1_check(candidate, rng):
    for D, H, bias in ((3, 5, True), (5, 3, False), (4, 4, True)):
        W_in, W_out, b_out, alpha, beta = (rng.normal(size=size) for size in ((D, H), (H, D), D, D, D))
        b_in, M = rng.normal(size=H), np.eye(D) - 1 / D
        found = candidate(W_in, b_in if bias else None, W_out, b_out, alpha, beta)
        wanted = np.diag(alpha) @ W_in, beta @ W_in + b_in * bias, W_out @ M, b_out @ M
        for expected, got in zip(wanted, found, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def m2_check(candidate, rng):
    for D, H in ((5, 3), (6, 6)):
        W_in, b_in, W_out, b_out, x = (rng.normal(size=size) for size in ((D, H), H, (H, D), D, (40, D)))
        Q, Q_next = (np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(2))
        W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out, Q, Q_next)
        rotated = x @ Q @ S + np.tanh(x @ Q @ W + b) @ W_writes + b_writes
        if np.abs((x + np.tanh(x @ W_in + b_in) @ W_out + b_out) @ Q_next - rotated).max() > 1e-9:
            raise ValueError("wrong")


def m3_check(candidate, rng):
    X, mask = rng.normal(size=(30, 5)) * np.arange(1, 6) + 1, rng.permutation(30) % 4 > 0
    _, sigma, Vt = np.linalg.svd(X[mask], full_matrices=False)
    for k in (1, 3):
        eigenvalues, P = candidate(X, mask, k)
        for expected, got in ((sigma**2, eigenvalues), (Vt[:k].T @ Vt[:k], P @ P.T)):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
