"""A6: rows and columns are deleted, one block after the other (section 3.4, eq. 9)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator

from . import toy
from .exercise import Case, Failure
from .feedback import checker
from .forms import Array, Form
from .judging import Places, close, named, orthonormal
from .markdown import read


def _normalised(x: np.ndarray, width: int, eps: float = toy.EPS) -> np.ndarray:
    return x / np.sqrt(np.square(x).sum(1, keepdims=True) / width + eps)


def _block(weights: Sequence[np.ndarray], x: np.ndarray, width: int) -> np.ndarray:
    """What a block adds to the signal, its norm dividing by this width."""
    W_in, b_in, W_out, b_out = weights
    return np.tanh(_normalised(x, width) @ W_in + b_in) @ W_out + b_out


def _block_cases(rng: Generator) -> list[Case]:
    cases = []
    for D, H, k, k_next in ((2, 3, 1, 1), (3, 5, 2, 2), (4, 6, 3, 2), (5, 4, 2, 3), (6, 8, 4, 4)):
        net = toy.network(rng, D, H, B=1)
        block = {name: net[name][0] for name in ("W_in", "b_in", "W_out", "b_out")}
        bases = {"P": toy.haar(rng, D)[:, :k].copy(), "P_next": toy.haar(rng, D)[:, :k_next].copy()}
        cases.append(Case({"D": D, "H": H, "k": k, "k_next": k_next}, block | bases))
    return cases


def _block_form(arguments: Mapping[str, Any]) -> Form:
    H, (k, k_next) = arguments["W_in"].shape[1], (arguments[name].shape[1] for name in ("P", "P_next"))
    shapes = {"W_in": (k, H), "b_in": (H,), "W_out": (H, k_next), "b_out": (k_next,), "S": (k, k_next)}
    return tuple(Array(name, shape) for name, shape in shapes.items())


def _judge_block(arguments: Mapping[str, Any], result: tuple) -> Failure | None:
    """What the block computes decides; if it differs, the places say where to look."""
    W_in, b_in, W_out, b_out, P, P_next = arguments.values()
    (D, k), k_next = P.shape, P_next.shape[1]
    x = np.random.default_rng(D).standard_normal((8 * D, D)) @ P @ P.T
    x *= np.linspace(0.03, 3, len(x))[:, None]  # some so short that eps counts
    sliced = x @ P @ result[4] + _block(result[:4], x @ P, D)
    if close((x + _block((W_in, b_in, W_out, b_out), x, D)) @ P_next, sliced):
        return None
    places = Places()
    wanted, bias = toy.weights_of(lambda z: z @ P.T @ W_in + b_in, k)
    mistakes = {
        "It is scaled as if the norm divided by k; it divides by the width it was trained at, D.": wanted
        * np.sqrt(k / D),
        "It makes up for a norm that divides by k; this norm divides by D.": wanted * np.sqrt(D / k),
        "Rows of W_in are deleted as they stand: first rotate, so that they are directions of P.": W_in[:k],
        "The last rows are kept as they stand: first rotate, so that they are directions of P.": W_in[D - k :],
    }
    places.add("W_in", wanted, result[0], mistakes, "x P comes in, for x P P^T.")
    places.add("b_in", bias, result[1], hint="it is added behind W_in, where nothing is deleted.")
    wanted, bias = toy.weights_of(lambda h: (h @ W_out + b_out) @ P_next, len(W_out))
    mistakes = {"Columns are deleted as they stand: first rotate.": W_out[:, :k_next]}
    if k == k_next:
        mistakes["It is turned into the basis that the block reads, not the next one."] = W_out @ P
    places.add("W_out", wanted, result[2], mistakes, "what is written for one neuron is a row of the signal.")
    mistakes = {"Entries are deleted as they stand: first rotate.": b_out[:k_next]}
    places.add("b_out", bias, result[3], mistakes, "who writes the signal besides W_out?")
    wanted, _ = toy.weights_of(lambda z: z @ P.T @ P_next, k)
    mistakes = {"It is the identity: without an adapter the residual stays in the old basis.": np.eye(k, k_next)}
    if k == k_next:
        mistakes["It is transposed: the signal is a row, and S stands on its right."] = wanted.T
    places.add("S", wanted, result[4], mistakes, "x P comes in, and (x P P^T) P_next must go on.")
    return places.failure()


def _interleave_cases(rng: Generator) -> list[Case]:
    cases = []
    for H, widths, D in ((5, [2, 3], 3), (6, [2, 3, 4], 4), (4, [3, 3, 5], 5), (8, [4, 3, 5, 6], 6), (5, [4] * 4, 7)):
        net = toy.network(rng, D, H, B=len(widths) - 1)
        net = {name: net[name] for name in ("W_in", "b_in", "W_out", "b_out")} | {"eps": toy.EPS}
        X = rng.standard_normal((8 * D, D)) * 1.5 ** -np.arange(D) @ toy.haar(rng, D)
        X = (X + 0.5) * rng.uniform(0.2, 3.0, (len(X), 1))  # of rows of different lengths, about another centre than 0
        cases.append(Case({"D": D, "H": H, "B": len(widths) - 1}, {"net": net, "X": X, "widths": widths}))
    return cases


def _interleave_form(arguments: Mapping[str, Any]) -> Form:
    D = arguments["X"].shape[1]
    return [Array(f"P[{boundary}]", (D, k)) for boundary, k in enumerate(arguments["widths"])]


def _judge_interleave(arguments: Mapping[str, Any], bases: list[np.ndarray]) -> Failure | None:
    net, X, widths = arguments.values()
    D = X.shape[1]
    full = dense = by_k = X  # the sliced network's signal, the dense one's, and that of norms that divide by k
    for boundary, (P, k) in enumerate(zip(bases, widths, strict=True)):
        place = f"P[{boundary}]"
        if failure := orthonormal(place, P):
            return failure
        Y = _normalised(full, D)
        if not close(_span(Y, k), P @ P.T, 1e-7):
            mistakes = {
                "These are the components that carry least: the largest eigenvalues come last.": np.eye(D)
                - _span(Y, D - k),
                "These are the components of the norm's input; eq. 8 looks at its output.": _span(full, k),
                "It is centred: eq. 8 subtracts no mean.": _span(Y - Y.mean(0), k),
                "These are the components of the dense network's signal; the blocks before are sliced already.": _span(
                    _normalised(dense, D), k
                ),
                "The norms of the blocks before divided by k: they divide by the width they were trained at, D.": _span(
                    _normalised(by_k, D), k
                ),
            }
            kept, most = (float(np.square(Y @ basis).sum() / np.square(Y).sum()) for basis in (P, _span(Y, k)))
            values = f"it keeps {kept:.4f} of the normalised signal, {k} columns could keep {most:.4f}"
            hint = "which signal arrives at this boundary, when all blocks before are sliced?"
            right = tuple(f"P[{i}]" for i in range(boundary))
            what = "its span is not that of the first principal components"
            return Failure("values", place, what, values, right, named(mistakes, P @ P.T), hint)
        if boundary < len(widths) - 1:
            weights = [net[name][boundary] for name in ("W_in", "b_in", "W_out", "b_out")]
            kept = full @ P @ P.T
            by_k = kept + _block(weights, kept, k)
            full = kept + _block(weights, kept, D)
            dense = dense + _block(weights, dense, D)
    return None


def _span(Y: np.ndarray, k: int) -> np.ndarray:
    """P P^T of the k directions in which the rows of Y have most energy."""
    _, _, directions = np.linalg.svd(Y)
    return directions[:k].T @ directions[:k]


A6 = read(
    "a6",
    slice_block=(_block_cases, _block_form, _judge_block),
    interleave=(_interleave_cases, _interleave_form, _judge_interleave),
)
check = checker(A6)
