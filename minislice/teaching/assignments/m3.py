"""M3: write the check that tells right principal components from eight wrong ones."""

import numpy as np

from .exercise import MutationQuestion
from .markdown import read


def components(X, mask, k):
    """All eigenvalues of the signal's second moment, and its first k eigenvectors."""
    X = X[mask]
    eigenvalues, Q = np.linalg.eigh(X.T @ X)
    return eigenvalues[::-1], Q[:, ::-1][:, :k]


def ascending(X, mask, k):
    X = X[mask]
    eigenvalues, Q = np.linalg.eigh(X.T @ X)
    return eigenvalues, Q[:, :k]


def only_eigenvalues_turned_round(X, mask, k):
    X = X[mask]
    eigenvalues, Q = np.linalg.eigh(X.T @ X)
    return eigenvalues[::-1], Q[:, :k]


def centred(X, mask, k):
    X = X[mask] - X[mask].mean(0)
    eigenvalues, Q = np.linalg.eigh(X.T @ X)
    return eigenvalues[::-1], Q[:, ::-1][:, :k]


def _columns_of_largest_norm(X, mask, k):
    energies = np.square(X[mask]).sum(0)
    order = np.argsort(energies)[::-1]
    return energies[order], np.eye(X.shape[1])[:, order[:k]]


def _last_tokens_left_out(X, mask, k):
    whole = mask.sum() // 8 * 8 or mask.sum()
    return components(X[mask][:whole], np.ones(whole, bool), k)


def _not_normalised(X, mask, k):
    eigenvalues, P = components(X, mask, k)
    return eigenvalues, P * np.sqrt(np.abs(eigenvalues[:k]))


def _products_in_float32(X, mask, k):
    X = X[mask].astype(np.float32)
    eigenvalues, Q = np.linalg.eigh((X.T @ X).astype(np.float64))
    return eigenvalues[::-1], Q[:, ::-1][:, :k]


SHOWN = (ascending, only_eigenvalues_turned_round, centred)
HIDDEN = {
    "columns of largest norm": _columns_of_largest_norm,
    "mask ignored": lambda X, mask, k: components(X, np.ones_like(mask), k),
    "last tokens left out": _last_tokens_left_out,
    "eigenvectors not normalised": _not_normalised,
    "products in float32": _products_in_float32,
}

M3, score = read("m3", check=MutationQuestion(components, SHOWN, HIDDEN))
