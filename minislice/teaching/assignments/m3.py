"""M3: write the check that tells right principal components from eight wrong ones."""

import numpy as np

from .exercise import Assignment, MutationQuestion
from .feedback import checker


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


def _mask_ignored(X, mask, k):
    return components(X, np.ones_like(mask), k)


def _last_tokens_left_out(X, mask, k):
    whole = mask.sum() // 8 * 8 or mask.sum()
    return components(X[mask][:whole], np.ones(whole, bool), k)


def _eigenvectors_not_normalised(X, mask, k):
    eigenvalues, P = components(X, mask, k)
    return eigenvalues, P * np.sqrt(np.abs(eigenvalues[:k]))


def _products_in_float32(X, mask, k):
    X = X[mask].astype(np.float32)
    eigenvalues, Q = np.linalg.eigh((X.T @ X).astype(np.float64))
    return eigenvalues[::-1], Q[:, ::-1][:, :k]


M3 = Assignment(
    name="m3",
    title="Catch it: components",
    goal="write a test of a result that is not unique, and say how exact it must be",
    before="A4",
    difficulty=2,
    notation="""Eigenvectors have no sign, and equal eigenvalues no basis: a test can't compare with values
that somebody once wrote down. It has to ask for what every right answer has.""",
    questions=(
        MutationQuestion(
            name="check",
            points=8,
            minutes=40,
            difficulty=2,
            text=r"""Write `check(candidate, rng)`. It calls the candidate with arguments of your choice, drawn from
the NumPy generator `rng`, and raises an exception (an `assert` will do) if what comes back is wrong. The right
function takes `X [N, D]`, `mask [N]` of bools (False: padding, not to be counted) and an int `k`, $1 \le k \le D$. It
returns, of

$$C = \sum_{x \text{ not padding}} x^\top x$$

all eigenvalues `[D]`, the largest first, and the first $k$ eigenvectors as the columns of $P$ (`[D, k]`), of length 1.
Signs are free. Everything is computed in float64.""",
            hints=(
                "C P = P diag(lambda), P^T P = I, lambda descending, and their sum is the trace of C.",
                "Draw X so that its mean isn't zero, mask some rows, and take more tokens than a handful.",
                "float64 keeps 15 digits, float32 seven. np.allclose is content with five: give it a smaller rtol.",
            ),
            takes={"X": "ND", "mask": "N", "k": ""},
            reference=components,
            shown={function.__name__: function for function in (ascending, only_eigenvalues_turned_round, centred)},
            hidden={
                function.__name__.strip("_"): function
                for function in (
                    _columns_of_largest_norm,
                    _mask_ignored,
                    _last_tokens_left_out,
                    _eigenvectors_not_normalised,
                    _products_in_float32,
                )
            },
        ),
    ),
)

score = checker(M3)
