"""A5: what carries the signal from one basis to the next, and how little of it is needed (section 3.3)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import toy
from .exercise import Case, Cases, Failure, Question
from .forms import Array
from .judging import Place, close, first_wrong, orthonormal
from .markdown import read

SIZES = ((2, 1, 1), (3, 2, 2), (4, 3, 3), (6, 4, 4), (5, 2, 2), (6, 2, 2))  # D, k, k_next; 2k > D, then 2k < D
GROWING = ((3, 1, 2), (5, 3, 4), (4, 2, 4))


def _bases(rng: np.random.Generator, sizes: Sequence[tuple[int, int, int]]) -> Cases:
    for D, k, k_next in sorted(sizes):
        P, R = toy.haar(rng, D)[:, :k].copy(), toy.haar(rng, D)[:, :k_next].copy()
        yield Case({"D": D, "k": k, "k_next": k_next}, {"P": P, "R": R})


def _judge_cosines(c: np.ndarray, P: np.ndarray, R: np.ndarray) -> Failure | None:
    between = P.T @ R @ R.T @ P  # how much of R's span lies in P's: c^2 are its eigenvalues
    squares = np.sort(np.linalg.eigvalsh(between))[::-1]
    hint = "of which matrix are the cosines the singular values?"
    if (c < -1e-12).any():
        return Failure("c", "a cosine of a principal angle is not negative", hint=hint)
    columns = np.sort(np.abs(np.sum(P * R, 0)))[::-1]
    mistakes = {
        "They are ascending.": squares[::-1],
        "These are the squares of the cosines.": np.square(squares),
        "These are the angles, not their cosines.": np.square(np.arccos(np.sqrt(np.clip(squares, 0, 1)))),
        "These are the sines.": 1 - squares[::-1],
        "These are the cosines between single columns; principal angles do not depend on the bases.": columns**2,
    }
    return first_wrong([Place("c^2", squares, mistakes, hint).of(np.square(c))])


def _judge_align(aligned: np.ndarray, P: np.ndarray, R: np.ndarray) -> Failure | None:
    k, k_next = P.shape[1], R.shape[1]
    mistakes = {"It spans what P spans: the deleted directions would be other ones.": P @ P.T}
    span = Place("R' R'^T", R @ R.T, mistakes, "R' must be R times an orthogonal matrix.").of(aligned @ aligned.T)
    if failure := first_wrong([orthonormal("R'", aligned), span]):
        return failure
    square, rest = np.split(P.T @ aligned, [k], axis=1)
    if rest.size and not close(0.0, rest, 1e-8):
        what = "its last k_next - k columns are not zero"
        hint = "the columns that P has no partner for must be orthogonal to P."
    elif not close(square, square.T, 1e-8):
        what = "it is not symmetric" if k == k_next else f"its first {k} columns are not symmetric"
        hint = "with P^T R = U diag(c) V^T: what must V^T be multiplied by, so that U diag(c) U^T is left?"
    elif np.linalg.eigvalsh((square + square.T) / 2).min() < -1e-8:
        what = "it has a negative eigenvalue: some column points away from its partner"
        hint = "no cosine is negative."
    else:
        return None
    mistakes = {"It is R as it was: nothing is aligned.": R}
    if k == k_next:
        U, _, Vt = np.linalg.svd(P.T @ R)
        mistakes |= {
            "It is R U V^T: turned the wrong way, it is V U^T that takes R to P.": R @ U @ Vt,
            "NumPy's svd returns V^T, not V: one transpose is missing.": R @ Vt @ U.T,
            "NumPy's svd returns V^T, not V: one transpose too many.": R @ U @ Vt.T,
            "It is R V: the columns are in pairs with those of P U, not with those of P.": R @ Vt.T,
        }
    mistake = next((sentence for sentence, value in mistakes.items() if close(value, aligned, 1e-7)), "")
    return Failure("P^T R'", what, fine=("R' R'^T",), mistake=mistake, hint=hint)


def _low_rank_cases(rng: np.random.Generator) -> Cases:
    for case in _bases(rng, SIZES + GROWING):
        P, R = case.arguments.values()
        yield Case(case.sizes, {"P": P, "R_aligned": _aligned(P, R)})
    same = toy.haar(rng, 7)[:, :4] * (1 + 1e-13)  # cosines of 1 + 2e-13, as rounding may make them
    yield Case({"D": 7, "k": 4, "k_next": 4}, {"P": same, "R_aligned": same.copy()})


def _aligned(P: np.ndarray, R: np.ndarray) -> np.ndarray:
    """A basis of R's span, the nearest to P: the polar factor of P's projection, and then the rest of the span."""
    U, _, Vt = np.linalg.svd(R @ R.T @ P, full_matrices=False)
    rest = np.linalg.svd(R @ R.T - U @ U.T)[0][:, : R.shape[1] - P.shape[1]]
    return np.concatenate([U @ Vt, rest], axis=1)


def _judge_low_rank(A: np.ndarray, P: np.ndarray, R_aligned: np.ndarray) -> Failure | None:
    (D, k), k_next = P.shape, R_aligned.shape[1]
    S, most = P.T @ R_aligned[:, :k], min(k, D - k_next)
    cosines, U = np.linalg.eigh(S)
    deficits = np.clip(1 - cosines, 0, None)
    largest, smallest = slice(most), slice(k - most, None)  # of 1 - c

    def product(values: np.ndarray, some: slice = slice(None)) -> np.ndarray:
        return (U[:, some] * values[some]) @ U[:, some].T

    mistakes = {
        "The root is missing: A A^T squares it.": product(np.square(deficits)),
        "It has the roots of the cosines, not of 1 - c.": product(cosines, largest),
        "It keeps the directions of the smallest 1 - c: those need no adapter.": product(deficits, smallest),
        "It has the sines, 1 - c^2.": product(1 - np.square(cosines)),
    }
    hint = "I - P^T R' = U (1 - C) U^T. What is its root, and which of its columns aren't zero?"
    if failure := first_wrong([Place("A A^T", np.eye(k) - S, mistakes, hint).of(A @ A.T)]):
        where = "I - A A^T" if k == k_next else f"I - A A^T against the first {k} columns of P^T R'"
        return replace(failure, where=where, what="it is not P^T R'\n" + failure.what)
    if A.shape[1] > most:
        what = f"it has {A.shape[1]} columns, D - k_next = {D - k_next} and k = {k} allow {most}"
        return Failure("A", what, fine=("A A^T",), hint="how many cosines can be below 1?")
    return None


A5, check = read(
    "a5",
    cosines=Question(lambda rng: _bases(rng, SIZES), lambda P, R: Array("c", P.shape[1:]), _judge_cosines),
    align=Question(lambda rng: _bases(rng, SIZES + GROWING), lambda P, R: Array("R'", R.shape), _judge_align),
    low_rank=Question(_low_rank_cases, lambda P, R_aligned: Array("A", (P.shape[1], "r")), _judge_low_rank),
)
