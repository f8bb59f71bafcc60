import numpy as np


def second_moment(H, w):
    """C [n, n], the sum over tokens of w_t^2 h_t^T h_t. H [T, n], w [T]."""
    weighted = H * w[:, None]
    return weighted.T @ weighted


def scores(C, W, ridge):
    """What deleting each neuron costs, [n]. C [n, n], W [n, D], ridge a float."""
    inverse = np.linalg.inv(C + ridge * np.eye(len(C)))
    return np.sum(W**2, axis=1) / np.diag(inverse)


def solve(C, W, ridge, kept):
    """The best output matrix of the kept neurons, [k, D]. kept [k]: their numbers, ascending."""
    n, k = len(C), len(kept)
    gone = [i for i in range(n) if i not in kept]
    C_KK, C_KM = C[kept][:, kept], C[kept][:, gone]
    return W[kept] + np.linalg.inv(C_KK + ridge * np.eye(k)) @ C_KM @ W[gone]


def thin(C, W, ridge, count):
    """Delete so many neurons, the cheapest of those that are left first.

    Returns the numbers of the kept neurons, ascending, [n - count], and their output matrix [n - count, D].
    """
    kept, V = np.arange(len(C)), W
    for _ in range(count):
        costs = scores(C[np.ix_(kept, kept)], V, ridge)
        kept = np.delete(kept, np.argmin(costs))
        V = solve(C, W, ridge, kept)
    return kept, V
