"""A4: principal components of the signal, and how many of them to keep (section 3.4, eq. 8)."""

import numpy as np

from . import toy
from .exercise import Case, Cases, Failure, Question
from .forms import Array
from .judging import Place, Wanted, compared, first_wrong, orthonormal
from .markdown import read


def _moment_cases(rng: np.random.Generator) -> Cases:
    for D, lengths in zip(range(2, 7), ((5, 3), (4, 7), (6, 3, 5), (9, 2), (3, 8, 4)), strict=True):
        batches = [rng.standard_normal((n, D)) * 3.0 ** -np.arange(D) + 0.7 for n in lengths]
        masks = [np.arange(n) < n - i for i, n in enumerate(lengths)]  # the first batch has no padding
        if len(lengths) == 3:
            masks[1][:] = False
        for x, mask in zip(batches, masks, strict=True):
            x[~mask] += 5.0
        yield Case({"D": D, "batches": len(lengths)}, {"batches": batches, "masks": masks})


def _moment(batches: list[np.ndarray], masks: list[np.ndarray]) -> Wanted:
    parts = [x[mask] for x, mask in zip(batches, masks, strict=True)]
    tokens, padded = np.concatenate(parts), np.concatenate(batches)
    centred, C = tokens - tokens.mean(0), tokens.T @ tokens
    mistakes = {
        "It is centred: eq. 8 subtracts no mean.": centred.T @ centred,
        "Padding is counted.": padded.T @ padded,
        "It is a mean for each batch: then a token of a short batch counts more.": (
            sum(part.T @ part / len(part) for part in parts if len(part))
        ),
        "It is divided by the number of tokens: eq. 8 is a sum.": C / len(tokens),
    }
    yield Place("C", C, mistakes, "C[i, j] is the sum of x_i x_j over the tokens.")


def _pca_cases(rng: np.random.Generator) -> Cases:
    for spectrum in (
        [3.0, 0.5],
        [5.0, 2.0, 0.1],
        [4.0, 4.0, 1.0, 0.0],  # any basis of the first two will do
        [9.0, 3.0, 2.0, 1.0, 0.0],
        [30.0, 10.0, 3.0, 1.0, 0.3, 0.1],
    ):
        Q = toy.haar(rng, len(spectrum))
        C = Q * np.array(spectrum) @ Q.T
        yield Case({"D": len(C)}, {"C": (C + C.T) / 2})


def _judge_pca(result: tuple[np.ndarray, np.ndarray], C: np.ndarray) -> Failure | None:
    eigenvalues, Q = result
    mistakes = {
        "Eigenvalues and eigenvectors are in opposite order: only one of them was turned round.": Q * eigenvalues[::-1],
        "The eigenvectors are the rows of this Q; they must be its columns.": C @ (Q - Q.T) + Q.T * eigenvalues,
        "These are singular values of the signal; the eigenvalues of C are their squares.": Q * np.square(eigenvalues),
    }
    hint = "C times a column of Q must be that column times its eigenvalue: C Q = Q diag(lambda)."
    if failure := first_wrong([orthonormal("Q", Q), Place("C Q", Q * eigenvalues, mistakes, hint).of(C @ Q)]):
        return failure
    rises = np.diff(eigenvalues) > 1e-9 * eigenvalues.max()
    if rises.any():
        first = int(np.argmax(rises))
        what = f"lambda[{first + 1}] is larger than lambda[{first}]"
        ascending = "It is ascending: the first columns hold least, less than a random basis."
        mistake = ascending if (np.diff(eigenvalues) >= -1e-9).all() else ""
        return Failure("lambda", what, mistake=mistake, fine=("Q",), hint="the largest comes first.")
    return None


def _width_cases(rng: np.random.Generator) -> Cases:
    """Spectra whose sums are exact in float64, with shares that are held exactly, nearly, and completely."""
    for values, share in (
        ([3.0, 1.0], 0.75),
        ([2.0, 1.0, 1.0], 0.625),
        ([8.0, 4.0, 2.0, 2.0], 0.875),
        ([32.0, 16.0, 8.0, 4.0, 4.0], 1.0),
        ([10.0, 3.0, 1.0, 1.0, 1.0, 0.0], 1.0),
        (np.sort(rng.integers(1, 99, 7))[::-1], float(rng.uniform(0.3, 0.95))),
    ):
        eigenvalues = 2.0 ** int(rng.integers(-3, 4)) * np.array(values)
        yield Case({"D": len(values)}, {"eigenvalues": eigenvalues, "share": share})


def _judge_width(k: int, eigenvalues: np.ndarray, share: float) -> Failure | None:
    D, total = len(eigenvalues), eigenvalues.sum()
    if not 1 <= k <= D:
        return Failure("k", "it is not between 1 and D", f"got {k}")
    held = f"{k} of {D} hold {eigenvalues[:k].sum() / total:.4g}, share is {share:.4g}"
    if eigenvalues[:k].sum() < share * total:
        return Failure("k", "the first k hold less than the share", held, hint="one more?")
    if k > 1 and eigenvalues[: k - 1].sum() >= share * total:
        return Failure("k", "k - 1 would do", held, hint="what if a share is held exactly?")
    return None


A4, check = read(
    "a4",
    second_moment=compared(_moment_cases, _moment),
    pca=Question(_pca_cases, lambda C: (Array("lambda", (len(C),)), Array("Q", C.shape)), _judge_pca),
    width=Question(_width_cases, lambda eigenvalues, share: Array("k", numbers="int64"), _judge_width),
)
