"""A8: neurons are deleted, and the output matrix is solved for again (notebook 09)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import toy
from .exercise import Case, Cases
from .judging import Place, Wanted, compared
from .markdown import read


def _moment(H: np.ndarray, w: np.ndarray) -> np.ndarray:
    return (H * np.square(w)[:, None]).T @ H


def _draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """H whose columns depend on one another and have a mean, and weights."""
    H = rng.standard_normal((6 * n, n)) * np.linspace(0.5, 1.5, n) @ toy.haar(rng, n) + 0.5
    return H, rng.uniform(0.2, 3.0, len(H))


def _moment_cases(rng: np.random.Generator) -> Cases:
    for n in (2, 3, 4, 6):
        H, w = _draw(rng, n)
        yield Case({"n": n, "T": len(H)}, {"H": H, "w": w})


def _second_moment(H: np.ndarray, w: np.ndarray) -> Wanted:
    mistakes = {
        "The tokens are not weighted.": _moment(H, np.ones_like(w)),
        "The weight is not squared: it stands in both factors.": _moment(H, np.sqrt(w)),
        "It is divided by the number of tokens; C is a sum.": _moment(H, w) / len(H),
        "It is centred: no mean is subtracted here.": _moment(H - H.mean(0), w),
    }
    yield Place("C", _moment(H, w), mistakes, "which number of a token stands in both factors?")


def _problem(rng: np.random.Generator, n: int, D: int) -> dict[str, Any]:
    C = _moment(*_draw(rng, n))
    return {"C": C, "W": rng.standard_normal((n, D)), "ridge": float(0.1 * np.trace(C) / n)}


def _solved_cases(rng: np.random.Generator) -> Cases:
    for n, D in ((3, 2), (4, 3), (5, 2), (7, 4), (8, 3)):
        yield Case({"n": n, "D": D}, _problem(rng, n, D))


def _scores(C: np.ndarray, W: np.ndarray, ridge: float) -> np.ndarray:
    return np.square(W).sum(1) / np.diag(np.linalg.inv(C + ridge * np.eye(len(C))))


def _without_inverse(C: np.ndarray, W: np.ndarray, ridge: float) -> np.ndarray:
    return np.square(W).sum(1) * (np.diag(C) + ridge)


def _all_scores(C: np.ndarray, W: np.ndarray, ridge: float) -> Wanted:
    size, right = np.square(W).sum(1), _scores(C, W, ridge)
    diagonal = "This is the diagonal of C + lambda I, without the inverse: the cost if no other neuron is solved for."
    mistakes = {
        diagonal: _without_inverse(C, W, ridge),
        "It is multiplied by the inverse's diagonal; the score is divided by it.": size * size / right,
        "The norm of W_i is not squared.": right / np.sqrt(size),
        "The ridge is missing.": _scores(C, W, 0.0),
        "W is left out.": right / size,
    }
    yield Place("scores", right, mistakes, "which diagonal is it?")


def _solve_cases(rng: np.random.Generator) -> Cases:
    for case in _solved_cases(rng):
        n = case.sizes["n"]
        kept = np.sort(rng.choice(n, n - n // 2, replace=False))
        yield Case({**case.sizes, "k": len(kept)}, {**case.arguments, "kept": kept})


def _solve(C: np.ndarray, W: np.ndarray, ridge: float, kept: np.ndarray) -> np.ndarray:
    """W_K + (C_KK + lambda I)^-1 C_KM W_M."""
    gone = np.setdiff1d(np.arange(len(C)), kept)
    left = C[np.ix_(kept, kept)] + ridge * np.eye(len(kept))
    return W[kept] + np.linalg.solve(left, C[np.ix_(kept, gone)] @ W[gone])


def _solved(C: np.ndarray, W: np.ndarray, ridge: float, kept: np.ndarray) -> Wanted:
    right = _solve(C, W, ridge, kept)
    pull = np.linalg.solve(C[np.ix_(kept, kept)] + ridge * np.eye(len(kept)), ridge * W[kept])
    mistakes = {
        "This is plain deletion: nothing makes up for the deleted neurons.": W[kept],
        "The ridge pulls towards zero; it must pull towards W_K.": right - pull,
        "The ridge is missing.": _solve(C, W, 0.0, kept),
        "This is what must be added to W_K, without W_K.": right - W[kept],
        "What is added has the wrong sign.": 2 * W[kept] - right,
        "The ridge is inside twice: on the right-hand side, too.": right + pull,
    }
    yield Place("W", right, mistakes, "what must the kept neurons write besides their own rows?")


def _thin_cases(rng: np.random.Generator) -> Cases:
    """In the last one every known mistake leaves other neurons than the right way: drawn again until it does."""
    for n, D, count in ((3, 2, 1), (4, 3, 2), (5, 2, 3), (6, 3, 3)):
        given = _problem(rng, n, D) | {"count": count}
        while n > 5 and any(np.array_equal(_thin(**given)[0], kept) for kept in _thin_mistakes(**given).values()):
            given = _problem(rng, n, D) | {"count": count}
        yield Case({"n": n, "D": D, "count": count}, given)


def _thin_mistakes(**given: Any) -> dict[str, np.ndarray]:
    """The neurons that are kept after each mistake."""
    once = _scores(given["C"], given["W"], given["ridge"]).argsort()[given["count"] :]
    return {
        "They are scored once; after each deletion the others have other scores.": np.sort(once),
        "They are scored with the first W, not with the solved one.": _thin(**given, again=False)[0],
        "The scores are those without the inverse.": _thin(**given, score=_without_inverse)[0],
        "The most important neurons are deleted.": _thin(**given, score=lambda *problem: -_scores(*problem))[0],
    }


def _thin(
    C: np.ndarray, W: np.ndarray, ridge: float, count: int, score: Callable = _scores, again: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Without `again`, neurons are scored with the first output matrix."""
    kept, V = np.arange(len(C)), W
    for _ in range(count):
        costs = score(C[np.ix_(kept, kept)], V if again else W[kept], ridge)
        kept = np.delete(kept, costs.argmin())
        V = _solve(C, W, ridge, kept)
    return kept, V


def _thinned(**given: Any) -> Wanted:
    kept, V = _thin(**given)
    yield Place("kept", kept, _thin_mistakes(**given), "who is the cheapest, when some are gone already?")
    plain = {"This is plain deletion: solve for the output matrix of the kept neurons.": given["W"][kept]}
    yield Place("W", V, plain, "which W does `solve` start from?")


A8, check = read(
    "a8",
    second_moment=compared(_moment_cases, _second_moment),
    scores=compared(_solved_cases, _all_scores),
    solve=compared(_solve_cases, _solved),
    thin=compared(_thin_cases, _thinned),
)
