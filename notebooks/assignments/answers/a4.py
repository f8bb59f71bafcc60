import numpy as np


def second_moment(batches, masks):
    """Sum of x^T x over all tokens x of all batches.

    batches: a list of float64 [n_i, D]. masks: a list of bool [n_i], True for a token,
    False for padding. Returns [D, D].
    """
    tokens = np.concatenate(batches)[np.concatenate(masks)]
    return tokens.T @ tokens


def pca(C):
    """Eigenvalues [D] of a symmetric C [D, D], descending, and eigenvectors, columns of Q."""
    eigenvalues, Q = np.linalg.eigh(C)
    return eigenvalues[::-1], Q[:, ::-1]


def width(eigenvalues, share):
    """The fewest components that hold at least this share of all eigenvalues [D]; an int."""
    held = np.cumsum(eigenvalues) / np.sum(eigenvalues)
    return int(np.sum(held < share)) + 1
