import numpy as np


def slice_block(W_in, b_in, W_out, b_out, P, P_next):
    """One block, sliced: it reads x P instead of x and writes y P_next instead of y.

    W_in [D, H], b_in [H], W_out [H, D], b_out [D]; P [D, k], P_next [D, k_next].
    Returns W_in [k, H], b_in [H], W_out [H, k_next], b_out [k_next], S [k, k_next].
    """
    return P.T @ W_in, b_in, W_out @ P_next, b_out @ P_next, P.T @ P_next


def interleave(net, X, widths):
    """What every boundary keeps: a list of B + 1 matrices P [D, widths[l]].

    net: a dictionary of W_in [B, D, H], b_in [B, H], W_out [B, H, D], b_out [B, D], eps.
    X [N, D]: the calibration signal at boundary 0. widths: a list of B + 1 ints.
    """
    D = X.shape[1]

    def normed(x):
        return x / np.sqrt(np.sum(x**2, axis=1, keepdims=True) / D + net["eps"])

    bases = []
    for block, k in enumerate(widths):
        Y = normed(X)
        bases.append(np.linalg.eigh(Y.T @ Y)[1][:, ::-1][:, :k])
        if block < len(net["W_in"]):
            X = X @ bases[-1] @ bases[-1].T
            neurons = np.tanh(normed(X) @ net["W_in"][block] + net["b_in"][block])
            X = X + neurons @ net["W_out"][block] + net["b_out"][block]
    return bases
