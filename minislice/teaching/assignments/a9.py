"""A9: which changes of attention's weights leave its output as it was (notebook 10)."""

import numpy as np

from . import toy
from .exercise import Case, Cases
from .judging import Place, Wanted, compared
from .markdown import read


def _turns(angles: np.ndarray, scales: np.ndarray | float = 1.0) -> np.ndarray:
    """M [d, d] for which x M rotates each pair of x by its angle, and multiplies it by its scale."""
    cos, sin = np.diag(scales * np.cos(angles)), np.diag(scales * np.sin(angles))
    return np.kron(cos, np.eye(2)) + np.kron(sin, [[0, 1], [-1, 0]])


def _attention(W: dict[str, np.ndarray], x: np.ndarray, theta: np.ndarray) -> np.ndarray:
    T, d = len(x), W["Q"].shape[1]
    turns = np.stack([_turns(position * theta) for position in range(T)])
    q, k = (np.einsum("ti,tij->tj", rows, turns) for rows in (x @ W["Q"], x @ W["K"] + W["b"]))
    scores = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(d), -np.inf)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True) @ x @ W["V"] @ W["O"]


def _value_cases(rng: np.random.Generator) -> Cases:
    for D, d in ((3, 2), (4, 3), (5, 4), (6, 2)):
        W_V, W_O = rng.standard_normal((D, d)), rng.standard_normal((d, D))
        yield Case({"D": D, "d": d}, {"W_V": W_V, "W_O": W_O, "R": _invertible(rng, d)})


def _invertible(rng: np.random.Generator, d: int) -> np.ndarray:
    """Far from orthogonal, and from singular."""
    return toy.haar(rng, d) * np.linspace(0.5, 2.0, d) @ toy.haar(rng, d)


def _value(W_V: np.ndarray, W_O: np.ndarray, R: np.ndarray) -> Wanted:
    yield Place("W_V", W_V @ R, {"It is multiplied by R^T.": W_V @ R.T}, "it is W_V R.")
    mistakes = {
        "R^T is the inverse of a rotation; R is none.": R.T @ W_O,
        "It is multiplied by R, not by its inverse.": R @ W_O,
        "It is as it was.": W_O,
    }
    yield Place("W_O", np.linalg.solve(R, W_O), mistakes, "what is W_V R times it?")


def _rotary_cases(rng: np.random.Generator) -> Cases:
    for D, pairs in ((3, 1), (4, 2), (5, 3), (6, 2)):
        W_Q, W_K = rng.standard_normal((2, D, 2 * pairs))
        turns = {"angles": rng.uniform(0.3, 2.8, pairs), "scales": rng.uniform(1.5, 3.0, pairs)}
        yield Case({"D": D, "d": 2 * pairs}, {"W_Q": W_Q, "W_K": W_K, **turns})


def _rotary(W_Q: np.ndarray, W_K: np.ndarray, angles: np.ndarray, scales: np.ndarray) -> Wanted:
    mistakes = {
        "It is rotated the other way.": W_Q @ _turns(-angles, scales),
        "It is not scaled.": W_Q @ _turns(angles),
    }
    yield Place("W_Q", W_Q @ _turns(angles, scales), mistakes, "rows are rotated, pair by pair.")
    mistakes = {
        "It is rotated the other way: a dot product stays if both turn alike.": W_K @ _turns(-angles, 1 / scales),
        "It is multiplied by the scale, as the queries are.": W_K @ _turns(angles, scales),
        "It is not scaled.": W_K @ _turns(angles),
        "It is not rotated.": W_K / np.repeat(scales, 2),
        "It is as it was.": W_K,
    }
    yield Place("W_K", W_K @ _turns(angles, 1 / scales), mistakes, "what keeps the dot product of each pair?")


def _candidates(rng: np.random.Generator, pairs: int) -> list[tuple[np.ndarray, ...]]:
    """Six changes A, B, F, G, beta in random order; two or three of them are symmetries."""
    d = 2 * pairs
    same, none, R, vector = np.eye(d), np.zeros(d), _invertible(rng, d), rng.standard_normal(d)
    angles, scales, inverse = rng.uniform(0.5, 2.5, pairs), rng.uniform(1.5, 3.0, pairs), np.linalg.inv(R)
    kept = [
        (same, same, R, inverse, none),
        (_turns(angles, scales), _turns(angles, 1 / scales), same, same, none),
        (-same, -same, -same, -same, none),
    ]
    broken = [
        (same, same, R, R.T, none),  # R is no rotation
        (R, inverse.T, same, same, none),  # a symmetry without positions; R doesn't commute with them
        (_turns(angles), _turns(-angles), same, same, none),  # queries and keys turn in opposite directions
        (_turns(angles, scales), _turns(angles, scales), same, same, none),  # both grow
        (same, same, same, same, vector),  # a symmetry without positions; here the constant turns with them
    ]
    if pairs > 1:
        exchanged = np.roll(same, 2, axis=0)  # pairs get each other's angles
        broken.append((exchanged, exchanged, same, same, none))
    count = int(rng.integers(2, 4))
    chosen = [kept[i] for i in rng.permutation(3)[:count]]
    chosen += [broken[i] for i in rng.permutation(len(broken))[: 6 - count]]
    return [chosen[i] for i in rng.permutation(6)]


def _unchanged_cases(rng: np.random.Generator) -> Cases:
    for pairs in (1, 2, 2, 3, 3):
        parts = zip(*_candidates(rng, pairs), strict=True)
        changes = {name: np.stack(part) for name, part in zip(("A", "B", "F", "G", "beta"), parts, strict=True)}
        theta = np.sort(rng.uniform(0.3, 0.5, pairs)) + 0.4 * np.arange(pairs)  # they differ, and none is near zero
        yield Case({"d": 2 * pairs}, changes | {"theta": theta})


def _unchanged(theta: np.ndarray, **changes: np.ndarray) -> Wanted:
    """Every candidate is tried on attention with random weights."""
    d, rng, holds = 2 * len(theta), np.random.default_rng(0), []
    W = {name: rng.standard_normal((d + 1, d)) for name in "QKV"}
    W |= {"O": rng.standard_normal((d, d + 1)), "b": rng.standard_normal(d)}
    x = rng.standard_normal((6, d + 1))
    before = _attention(W, x, theta)
    for A, B, F, G, beta in zip(*changes.values(), strict=True):
        changed = {"Q": W["Q"] @ A, "K": W["K"] @ B, "b": W["b"] @ B + beta, "V": W["V"] @ F, "O": G @ W["O"]}
        holds.append(float(np.abs(_attention(changed, x, theta) - before).max() < 1e-7))
    yield Place("unchanged", np.array(holds), {}, "try it: two random matrices, four tokens, and the formula above.")


A9, check = read(
    "a9",
    value_output=compared(_value_cases, _value),
    rotary_pair=compared(_rotary_cases, _rotary),
    unchanged=compared(_unchanged_cases, _unchanged),
)
