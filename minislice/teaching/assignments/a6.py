"""A6: rows and columns are deleted, one block after the other (section 3.4, eq. 9)."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np

from . import toy
from .exercise import Case, Cases, Failure, Question
from .forms import Array
from .judging import Place, Wanted, close, compared, first_wrong, orthonormal
from .markdown import read

BLOCK = ("W_in", "b_in", "W_out", "b_out")


def _normalised(x: np.ndarray, width: int) -> np.ndarray:
    return x / np.sqrt(np.square(x).sum(1, keepdims=True) / width + toy.EPS)


def _block(weights: Iterable[np.ndarray], x: np.ndarray, width: int) -> np.ndarray:
    """What a block adds to the signal, its norm dividing by this width."""
    W_in, b_in, W_out, b_out = weights
    return np.tanh(_normalised(x, width) @ W_in + b_in) @ W_out + b_out


def _block_cases(rng: np.random.Generator) -> Cases:
    for D, H, k, k_next in ((2, 3, 1, 1), (3, 5, 2, 2), (4, 6, 3, 2), (5, 4, 2, 3), (6, 8, 4, 4)):
        net = toy.network(rng, D, H, B=1)
        bases = {"P": toy.haar(rng, D)[:, :k].copy(), "P_next": toy.haar(rng, D)[:, :k_next].copy()}
        yield Case({"D": D, "H": H, "k": k, "k_next": k_next}, {name: net[name][0] for name in BLOCK} | bases)


def _computes_the_same(result: tuple, P: np.ndarray, P_next: np.ndarray, **dense: np.ndarray) -> bool:
    D = len(P)
    x = np.random.default_rng(D).standard_normal((8 * D, D)) @ P @ P.T
    x *= np.linspace(0.03, 3, len(x))[:, None]  # some so short that eps counts
    sliced = x @ P @ result[4] + _block(result[:4], x @ P, D)
    return close((x + _block(dense.values(), x, D)) @ P_next, sliced)


def _sliced_block(
    W_in: np.ndarray, b_in: np.ndarray, W_out: np.ndarray, b_out: np.ndarray, P: np.ndarray, P_next: np.ndarray
) -> Wanted:
    (D, k), k_next, S = P.shape, P_next.shape[1], P.T @ P_next
    by_k = {
        "It is scaled as if the norm divided by k; it divides by the width it was trained at, D.": (k / D) ** 0.5,
        "It makes up for a norm that divides by k; this norm divides by D.": (D / k) ** 0.5,
    }
    mistakes = {sentence: factor * P.T @ W_in for sentence, factor in by_k.items()} | {
        "Rows of W_in are deleted as they stand: first rotate, so that they are directions of P.": W_in[:k],
        "The last rows are kept as they stand: first rotate, so that they are directions of P.": W_in[D - k :],
    }
    yield Place("W_in", P.T @ W_in, mistakes, "x P comes in, for x P P^T.")
    yield Place("b_in", b_in, {}, "it is added after W_in, where nothing is deleted.")
    mistakes = {"Columns are deleted as they stand: first rotate.": W_out[:, :k_next]}
    if k == k_next:
        mistakes["It is turned into the basis that the block reads, not the next one."] = W_out @ P
    yield Place("W_out", W_out @ P_next, mistakes, "what is written for one neuron is a row of the signal.")
    mistakes = {"Entries are deleted as they stand: first rotate.": b_out[:k_next]}
    yield Place("b_out", b_out @ P_next, mistakes, "who writes the signal besides W_out?")
    mistakes = {"It is transposed: the signal is a row, and S stands on its right.": S.T} if k == k_next else {}
    yield Place("S", S, mistakes, "x P comes in, and (x P P^T) P_next must go on.")


def _interleave_cases(rng: np.random.Generator) -> Cases:
    for H, widths, D in ((5, [2, 3], 3), (6, [2, 3, 4], 4), (4, [3, 3, 5], 5), (8, [4, 3, 5, 6], 6), (5, [4] * 4, 7)):
        net = toy.network(rng, D, H, B=len(widths) - 1)
        net = {name: net[name] for name in BLOCK} | {"eps": toy.EPS}
        X = rng.standard_normal((8 * D, D)) * 1.5 ** -np.arange(D) @ toy.haar(rng, D)
        X = (X + 0.5) * rng.uniform(0.2, 3.0, (len(X), 1))  # of rows of different lengths, about another centre than 0
        yield Case({"D": D, "H": H, "B": len(widths) - 1}, {"net": net, "X": X, "widths": widths})


def _judge_interleave(bases: list[np.ndarray], net: dict, X: np.ndarray, widths: list[int]) -> Failure | None:
    D = X.shape[1]
    full = dense = by_k = X  # the sliced network's signal, the dense one's, and that of norms that divide by k
    for boundary, (P, k) in enumerate(zip(bases, widths, strict=True)):
        name, Y = f"P[{boundary}]", _normalised(full, D)
        others = {
            "These are the components of the norm's input; eq. 8 looks at its output.": full,
            "The norm divides by k; it divides by the width it was trained at, D.": _normalised(by_k, k),
            "It is centred: eq. 8 subtracts no mean.": Y - Y.mean(0),
            "These are the components of the dense network's signal; the blocks before are sliced already.": (
                _normalised(dense, D)
            ),
            "The norms of the blocks before divided by k: they divide by the width they were trained at, D.": (
                _normalised(by_k, D)
            ),
        }
        mistakes = {sentence: _span(signal, k) for sentence, signal in others.items()}
        least = "These are the components that carry least: the largest eigenvalues come last."
        mistakes[least] = np.eye(D) - _span(Y, D - k)
        hint = "which signal arrives at this boundary, when all blocks before are sliced?"
        if failure := first_wrong([orthonormal(name, P)]):
            return failure
        span = Place(name, _span(Y, k), mistakes, hint, partial(close, tolerance=1e-7)).of(P @ P.T)
        if failure := first_wrong([span]):
            what = "its span is not that of the first principal components"
            kept, most = (float(np.square(Y @ basis).sum() / np.square(Y).sum()) for basis in (P, _span(Y, k)))
            values = f"it keeps {kept:.4f} of the normalised signal, {k} columns could keep {most - kept:.2g} more"
            return replace(failure, what=what, values=values, fine=tuple(f"P[{i}]" for i in range(boundary)))
        if boundary < len(widths) - 1:
            weights = [net[name][boundary] for name in BLOCK]
            kept = full @ P @ P.T
            by_k = kept + _block(weights, kept, k)
            full = kept + _block(weights, kept, D)
            dense = dense + _block(weights, dense, D)
    return None


def _span(Y: np.ndarray, k: int) -> np.ndarray:
    """P P^T of the k directions in which the rows of Y have most energy."""
    _, _, directions = np.linalg.svd(Y)
    return directions[:k].T @ directions[:k]


A6, check = read(
    "a6",
    slice_block=compared(_block_cases, _sliced_block, _computes_the_same),
    interleave=Question(
        _interleave_cases,
        lambda net, X, widths: [Array(f"P[{l}]", (X.shape[1], k)) for l, k in enumerate(widths)],  # noqa: E741
        _judge_interleave,
    ),
)
