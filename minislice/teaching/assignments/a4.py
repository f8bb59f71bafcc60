"""A4: principal components of the signal, and how many of them to keep (section 3.4, eq. 8)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from . import toy
from .exercise import Case, Failure
from .feedback import checker
from .forms import Array, Number
from .judging import Places, close, orthonormal
from .markdown import read


def _moment_cases(rng: Generator) -> list[Case]:
    cases = []
    for D, lengths in zip(range(2, 7), ((5, 3), (4, 7), (6, 3, 5), (9, 2), (3, 8, 4)), strict=True):
        batches = [rng.standard_normal((n, D)) * 3.0 ** -np.arange(D) + 0.7 for n in lengths]
        masks = [np.arange(n) < n - i for i, n in enumerate(lengths)]  # the first batch has no padding
        if len(lengths) == 3:
            masks[1][:] = False
        for x, mask in zip(batches, masks, strict=True):
            x[~mask] += 5.0
        cases.append(Case({"D": D, "batches": len(lengths)}, {"batches": batches, "masks": masks}))
    return cases


def _judge_moment(arguments: Mapping[str, Any], C: np.ndarray) -> Failure | None:
    batches, masks = arguments.values()
    tokens = np.concatenate([x[mask] for x, mask in zip(batches, masks, strict=True)])
    expected = _energies(tokens)
    centred = tokens - tokens.mean(0)
    padded = np.concatenate(batches)
    means = sum(_energies(x[mask]) / mask.sum() for x, mask in zip(batches, masks, strict=True) if mask.any())
    mistakes = {
        "It is centred: eq. 8 subtracts no mean.": _energies(centred),
        "It is centred, and a mean: eq. 8 is a sum, about zero.": _energies(centred) / len(tokens),
        "Padding is counted.": _energies(padded),
        "It is a mean for each batch: then a token of a short batch counts more.": means,
        "It is a mean of means: then a token of a short batch counts more.": means / len(batches),
        "It is divided by the number of tokens: eq. 8 is a sum.": expected / len(tokens),
        "It is divided by the number of tokens, less one: eq. 8 is a sum.": expected / max(1, len(tokens) - 1),
        "It is the sum over one batch only, the first.": _energies(batches[0][masks[0]]),
        "It is the sum over one batch only, the last.": _energies(batches[-1][masks[-1]]),
    }
    failure = Places().add("C", expected, C, mistakes, "C[i, j] is the sum of x_i x_j over the tokens.").failure()
    if failure and not failure.mistake and close(expected, C, 1e-5):
        return replace(failure, mistake="Seven digits are right: something is summed in float32.")
    return failure


def _energies(tokens: np.ndarray) -> np.ndarray:
    """C from what it is for: v^T C v is the energy of the tokens along v, here along e_i, e_j and e_i + e_j."""
    along = np.square(tokens).sum(0)
    both = np.square(tokens[:, :, None] + tokens[:, None, :]).sum(0)
    return (both - along[:, None] - along) / 2


def _pca_cases(rng: Generator) -> list[Case]:
    spectra = (
        [3.0, 0.5],
        [5.0, 2.0, 0.1],
        [4.0, 4.0, 1.0, 0.0],  # any basis of the first two will do
        [9.0, 3.0, 2.0, 1.0, 0.0],
        [30.0, 10.0, 3.0, 1.0, 0.3, 0.1],
    )
    cases = []
    for spectrum in spectra:
        Q = toy.haar(rng, len(spectrum))
        C = Q * np.array(spectrum) @ Q.T
        cases.append(Case({"D": len(C)}, {"C": (C + C.T) / 2}))
    return cases


def _judge_pca(arguments: Mapping[str, Any], result: tuple[np.ndarray, np.ndarray]) -> Failure | None:
    C = arguments["C"]
    eigenvalues, Q = result
    if failure := orthonormal("Q", Q):
        return failure
    if not close(C @ Q, Q * eigenvalues, 1e-9):
        mistake = ""
        if close(C @ Q, Q * eigenvalues[::-1], 1e-9):
            mistake = "Eigenvalues and eigenvectors are in opposite order: only one of them was turned round."
        elif close(C @ Q.T, Q.T * eigenvalues, 1e-9):
            mistake = "The eigenvectors are the rows of this Q; they must be its columns."
        elif close(C @ Q, Q * np.square(eigenvalues), 1e-9):
            mistake = "These are singular values of the signal; the eigenvalues of C are their squares."
        elif close(C @ C @ Q, (C @ Q) * np.sqrt(np.abs(eigenvalues)), 1e-9):
            mistake = "These are the squares of the eigenvalues."
        column = int(np.abs(C @ Q - Q * eigenvalues).max(0).argmax())
        what = f"C Q is not Q diag(lambda), in column {column} most of all"
        hint = "C times a column of Q must be that column times its eigenvalue."
        return Failure("values", "lambda, Q", what, mistake=mistake, hint=hint)
    falls = np.diff(eigenvalues)
    if (falls > 1e-9 * eigenvalues.max()).any():
        first = int(np.argmax(falls > 1e-9 * eigenvalues.max()))
        what = f"lambda[{first + 1}] is larger than lambda[{first}]"
        mistake = (
            "It is ascending: the first columns hold least, less than a random basis." if (falls >= -1e-9).all() else ""
        )
        return Failure("values", "lambda", what, mistake=mistake, fine=("Q",), hint="the largest comes first.")
    return None


def _width_cases(rng: Generator) -> list[Case]:
    """Spectra whose sums are exact in float64, with shares that are held exactly, nearly, and completely."""
    spectra = [
        ([3.0, 1.0], 0.75),
        ([2.0, 1.0, 1.0], 0.625),
        ([8.0, 4.0, 2.0, 2.0], 0.875),
        ([32.0, 16.0, 8.0, 4.0, 4.0], 1.0),
        ([10.0, 3.0, 1.0, 1.0, 1.0, 0.0], 1.0),
        ([float(v) for v in np.sort(rng.integers(1, 99, 7))[::-1]], float(rng.uniform(0.3, 0.95))),
    ]
    return [
        Case({"D": len(values)}, {"eigenvalues": 2.0 ** int(rng.integers(-3, 4)) * np.array(values), "share": share})
        for values, share in spectra
    ]


def _judge_width(arguments: Mapping[str, Any], k: int) -> Failure | None:
    eigenvalues, share = arguments.values()
    D, total = len(eigenvalues), eigenvalues.sum()
    if not 1 <= k <= D:
        return Failure("values", "k", "it is not between 1 and D", f"got {k}")
    held = f"{k} of {D} hold {eigenvalues[:k].sum() / total:.4g}, share is {share:.4g}"
    if eigenvalues[:k].sum() < share * total:
        return Failure("values", "k", "the first k hold less than the share", held, hint="one more?")
    if k > 1 and eigenvalues[: k - 1].sum() >= share * total:
        return Failure("values", "k", "k - 1 would do", held, hint="what if a share is held exactly?")
    return None


A4 = read(
    "a4",
    second_moment=(_moment_cases, lambda arguments: Array("C", (arguments["batches"][0].shape[1],) * 2), _judge_moment),
    pca=(
        _pca_cases,
        lambda arguments: (Array("lambda", (len(arguments["C"]),)), Array("Q", arguments["C"].shape)),
        _judge_pca,
    ),
    width=(_width_cases, lambda arguments: Number("k", int), _judge_width),
)
check = checker(A4)
