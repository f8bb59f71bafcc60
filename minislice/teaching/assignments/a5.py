"""A5: what carries the signal from one basis to the next, and how little of it is needed (section 3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from . import toy
from .exercise import Case, Failure
from .feedback import checker
from .forms import Array
from .judging import Places, close, named
from .markdown import read

SIZES = ((2, 1, 1), (3, 2, 2), (4, 3, 3), (6, 4, 4), (5, 2, 2), (6, 2, 2))  # D, k, k_next; 2k > D, then 2k < D
GROWING = ((3, 1, 2), (5, 3, 4), (4, 2, 4))


def _bases(rng: Generator, sizes: Sequence[tuple[int, int, int]]) -> list[Case]:
    return [
        Case(
            {"D": D, "k": k, "k_next": k_next},
            {"P": toy.haar(rng, D)[:, :k].copy(), "R": toy.haar(rng, D)[:, :k_next].copy()},
        )
        for D, k, k_next in sorted(sizes)
    ]


def _judge_cosines(arguments: Mapping[str, Any], c: np.ndarray) -> Failure | None:
    P, R = arguments.values()
    between = P.T @ R @ R.T @ P  # how much of R's span lies in P's: c^2 are its eigenvalues
    squares = np.sort(np.linalg.eigvalsh(between))[::-1]
    hint = "of which matrix are the cosines the singular values?"
    if (c < -1e-12).any():
        return Failure("values", "c", "a cosine of a principal angle is not negative", hint=hint)
    mistakes = {
        "They are ascending.": squares[::-1],
        "These are the squares of the cosines.": np.square(squares),
        "These are the angles, not their cosines.": np.square(np.arccos(np.sqrt(np.clip(squares, 0, 1)))),
        "These are the sines.": 1 - squares[::-1],
        "These are the cosines between single columns; principal angles do not depend on the bases.": np.square(
            np.sort(np.abs(np.sum(P * R, 0)))[::-1]
        ),
    }
    return Places().add("c^2", squares, np.square(c), mistakes, hint).failure()


def _judge_align(arguments: Mapping[str, Any], aligned: np.ndarray) -> Failure | None:
    P, R = arguments.values()
    k, k_next = P.shape[1], R.shape[1]
    if not close(R @ R.T, aligned @ aligned.T, 1e-8):
        mistake = ""
        if close(P @ P.T, aligned @ aligned.T, 1e-8):
            mistake = "It spans what P spans: the deleted directions would be other ones."
        elif close(R @ R.T @ aligned, aligned, 1e-8):
            mistake = "It lies in the span of R, but its columns are not orthonormal, or too few."
        hint = "R' must be R times an orthogonal matrix."
        return Failure("values", "R'", "R' R'^T is not R R^T", mistake=mistake, hint=hint)
    S = P.T @ aligned
    square, rest = S[:, :k], S[:, k:]
    U, _, Vt = np.linalg.svd(P.T @ R)
    V = Vt.T
    turned = {"It is R as it was: nothing is aligned.": np.eye(k_next)}
    if k == k_next:
        turned |= {
            "It is R U V^T: turned the wrong way, it is V U^T that takes R to P.": U @ V.T,
            "NumPy's svd returns V^T, not V: one transpose is missing.": Vt @ U.T,
            "NumPy's svd returns V^T, not V: one transpose too many.": U @ Vt.T,
            "It is R V: the columns are in pairs with those of P U, not with those of P.": V,
        }
    if rest.size and not close(0.0, rest, 1e-8):
        what = "its last k_next - k columns are not zero"
        hint = "the columns that P has no partner for must be orthogonal to P."
    elif not close(square, square.T, 1e-8):
        what = "it is not symmetric" if k == k_next else f"its first {k} columns are not symmetric"
        hint = "with P^T R = U C V^T: what must V^T be multiplied by, so that U C U^T is left?"
    elif np.linalg.eigvalsh((square + square.T) / 2).min() < -1e-8:
        what = "it has a negative eigenvalue: some column points away from its partner"
        hint = "no cosine is negative."
    else:
        return None
    mistake = named({sentence: R @ turn for sentence, turn in turned.items()}, aligned)
    return Failure("values", "P^T R'", what, fine=("R' R'^T",), mistake=mistake, hint=hint)


def _low_rank_cases(rng: Generator) -> list[Case]:
    cases = []
    for case in _bases(rng, SIZES + GROWING):
        P, R = case.arguments.values()
        cases.append(Case(case.sizes, {"P": P, "R_aligned": _aligned(P, R)}))
    same = toy.haar(rng, 7)[:, :4] * (1 + 1e-13)  # cosines of 1 + 2e-13, as rounding may make them
    cases.append(Case({"D": 7, "k": 4, "k_next": 4}, {"P": same, "R_aligned": same.copy()}))
    return cases


def _aligned(P: np.ndarray, R: np.ndarray) -> np.ndarray:
    """A basis of R's span, the nearest to P, by iteration to the polar factor; the rest of it behind."""
    k = P.shape[1]
    inside = R @ (R.T @ P)  # P's columns, projected
    values, vectors = np.linalg.eigh(inside.T @ inside)
    first = inside @ (vectors / np.sqrt(values)) @ vectors.T
    values, vectors = np.linalg.eigh(R @ R.T - first @ first.T)
    return np.concatenate([first, vectors[:, len(P) - R.shape[1] + k :]], axis=1)


def _judge_low_rank(arguments: Mapping[str, Any], A: np.ndarray) -> Failure | None:
    P, aligned = arguments.values()
    (D, k), k_next = P.shape, aligned.shape[1]
    S = P.T @ aligned[:, :k]
    most = min(k, D - k_next)
    cosines, U = np.linalg.eigh(S)
    deficits = np.clip(1 - cosines, 0, None)
    mistakes = {
        "The root is missing: A A^T squares it.": (U * np.square(deficits)) @ U.T,
        "It has the roots of the cosines, not of 1 - c.": (U[:, :most] * cosines[:most]) @ U[:, :most].T,
        "It keeps the directions of the smallest 1 - c: those need no adapter.": (
            U[:, k - most :] * deficits[k - most :]
        )
        @ U[:, k - most :].T,
        "It has the sines, 1 - c^2.": (U * (1 - np.square(cosines))) @ U.T,
    }
    hint = "I - P^T R' = U (1 - C) U^T. What is its root, and which of its columns aren't zero?"
    failure = Places().add("A A^T", np.eye(k) - S, A @ A.T, mistakes, hint).failure()
    if failure:
        where = "I - A A^T" if k == k_next else f"I - A A^T against the first {k} columns of P^T R'"
        return replace(failure, where=where, what="it is not P^T R'\n" + failure.what)
    if A.shape[1] > most:
        what = f"it has {A.shape[1]} columns, D - k_next = {D - k_next} and k = {k} allow {most}"
        return Failure("values", "A", what, fine=("A A^T",), hint="how many cosines can be below 1?")
    return None


A5 = read(
    "a5",
    cosines=(lambda rng: _bases(rng, SIZES), lambda arguments: Array("c", (arguments["P"].shape[1],)), _judge_cosines),
    align=(lambda rng: _bases(rng, SIZES + GROWING), lambda arguments: Array("R'", arguments["R"].shape), _judge_align),
    low_rank=(_low_rank_cases, lambda arguments: Array("A", (arguments["P"].shape[1], "r")), _judge_low_rank),
)
check = checker(A5)
