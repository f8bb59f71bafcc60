"""A5: what carries the signal from one basis to the next, and how little of it is needed (section 3.3)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from . import toy
from .exercise import Assignment, Case, Failure, Question, WrittenQuestion
from .feedback import checker
from .forms import Array
from .judging import Places, close

SIZES = ((2, 1, 1), (3, 2, 2), (4, 3, 3), (6, 4, 4), (5, 2, 2), (6, 2, 2))  # D, k, k_next; 2k > D, then 2k < D
GROWING = ((3, 1, 2), (5, 3, 4), (4, 2, 4))


def _bases(rng: Generator, D: int, k: int, k_next: int) -> tuple[np.ndarray, np.ndarray]:
    return toy.haar(rng, D)[:, :k].copy(), toy.haar(rng, D)[:, :k_next].copy()


def _cosine_cases(rng: Generator) -> list[Case]:
    cases = []
    for D, k, k_next in sorted(SIZES):
        P, R = _bases(rng, D, k, k_next)
        cases.append(Case({"D": D, "k": k}, {"P": P, "R": R}))
    return cases


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


def _align_cases(rng: Generator) -> list[Case]:
    cases = []
    for D, k, k_next in sorted(SIZES + GROWING):
        P, R = _bases(rng, D, k, k_next)
        cases.append(Case({"D": D, "k": k, "k_next": k_next}, {"P": P, "R": R}))
    return cases


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
    mistake = "".join([sentence for sentence, turn in turned.items() if close(R @ turn, aligned, 1e-8)][:1])
    if rest.size and not close(0.0, rest, 1e-8):
        what = "its last k_next - k columns are not zero"
        hint = "the columns that P has no partner for must be orthogonal to P."
        return Failure("values", "P^T R'", what, fine=("R' R'^T",), mistake=mistake, hint=hint)
    if not close(square, square.T, 1e-8):
        what = "it is not symmetric" if k == k_next else f"its first {k} columns are not symmetric"
        hint = "with P^T R = U C V^T: what must V^T be multiplied by, so that U C U^T is left?"
        return Failure("values", "P^T R'", what, fine=("R' R'^T",), mistake=mistake, hint=hint)
    if np.linalg.eigvalsh((square + square.T) / 2).min() < -1e-8:
        what = "it has a negative eigenvalue: some column points away from its partner"
        return Failure("values", "P^T R'", what, fine=("R' R'^T",), mistake=mistake, hint="no cosine is negative.")
    return None


def _low_rank_cases(rng: Generator) -> list[Case]:
    cases = []
    for D, k, k_next in sorted(SIZES + GROWING):
        P, R = _bases(rng, D, k, k_next)
        cases.append(Case({"D": D, "k": k, "k_next": k_next}, {"P": P, "R_aligned": _aligned(P, R)}))
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


A5 = Assignment(
    name="a5",
    title="Residual adapters",
    goal="say how two subspaces lie to each other, and store the way from one to the other in few numbers",
    before="A3, A4; the singular value decomposition (notebook 04)",
    difficulty=3,
    notation=r"""$P$ (`[D, k]`) and $R$ (`[D, k_next]`, $k \le k_\mathrm{next}$) have orthonormal columns: what two
neighbouring boundaries keep. $S = P^\top R$ is the residual adapter between them, and $S = U C V^\top$ its singular
value decomposition. The columns of $R$ may be replaced by others with the same span: the sliced network computes the
same. No function may change its arguments.""",
    questions=(
        Question(
            name="cosines",
            points=5,
            minutes=15,
            difficulty=2,
            text=r"""The cosines $c_1 \ge \dots \ge c_k$ of the principal angles: $c_1$ is the largest $x \cdot y$ of a
unit vector $x$ in the span of $P$ and a unit vector $y$ in the span of $R$; $c_2$ the largest among those orthogonal
to the first pair, and so on. They depend on the spans only. Here $k_\mathrm{next} = k$.""",
            hints=(
                "Write x = P u and y = R v with unit vectors u and v. What is x . y?",
                "u^T (P^T R) v is largest at the first singular vectors; the value there is the first singular value.",
            ),
            cases=_cosine_cases,
            returns=lambda arguments: Array("c", (arguments["P"].shape[1],)),
            judge=_judge_cosines,
        ),
        Question(
            name="align",
            points=10,
            minutes=30,
            difficulty=3,
            text=r"""Find the $R'$ with the span of $R$ that lies as near to $P$ as it can:

$$R' R'^\top = R R^\top, \qquad P^\top R' = \big[\, U C U^\top, \; 0 \,\big]$$

The first $k$ columns of $P^\top R'$ are symmetric, with the cosines as eigenvalues; the other $k_\mathrm{next} - k$,
for which $P$ has no partner, are zero. If $k_\mathrm{next} = k$, there are none of these.""",
            hints=(
                "R' = R T with an orthogonal T [k_next, k_next]. P^T R T = U C V^T T: which T leaves U C U^T?",
                "For k = k_next, T = V U^T. NumPy returns V^T.",
                "For k < k_next the full V has k_next columns; only its first k have a partner in U.",
            ),
            cases=_align_cases,
            returns=lambda arguments: Array("R'", arguments["R"].shape),
            judge=_judge_align,
        ),
        Question(
            name="low_rank",
            points=10,
            minutes=20,
            difficulty=3,
            text=r"""Two $k$-dimensional subspaces of $D$ dimensions meet in at least $2k - D$ dimensions, so at most
$D - k$ of the cosines are below 1. With an aligned $R'$, find $A$ (`[k, r]`) with

$$P^\top R' = \big[\, I - A A^\top, \; 0 \,\big], \qquad r \le \min(k, D - k_\mathrm{next})$$

The adapter is then $x - (x A) A^\top$: $k r$ numbers in place of $k^2$. A cosine may come out as
$1 + 10^{-13}$; that is rounding.""",
            hints=(
                "The eigenvectors of the symmetric part with cosine 1 contribute nothing to I - P^T R'.",
                "A A^T = U (1 - C) U^T: scale each column of U by a root, and drop the columns that are zero.",
                "np.linalg.eigh is ascending: the smallest cosines come first. Clip 1 - c at zero before taking roots.",
            ),
            cases=_low_rank_cases,
            returns=lambda arguments: Array("A", (arguments["P"].shape[1], "r")),
            judge=_judge_low_rank,
        ),
    ),
    written=(
        WrittenQuestion(
            name="rank_47",
            points=5,
            minutes=10,
            difficulty=2,
            text=r"""Sliced with `minislice.slice_model(model, tokens, width=144, head="own")`, mini-opt, whose
width is $D = 192$, has adapters of rank 47 (`model.slicing.ranks`), not $D - k = 48$. Why? What would you expect of a
LLaMA?""",
        ),
    ),
)

check = checker(A5)
