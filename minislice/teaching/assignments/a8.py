"""A8: neurons are deleted, and the output matrix is solved for again (notebook 09)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Generator

from . import toy
from .exercise import Case, Failure
from .feedback import checker
from .forms import Array
from .judging import Places, close
from .markdown import read


def _moment(H: np.ndarray, w: np.ndarray) -> np.ndarray:
    return (H * np.square(w)[:, None]).T @ H


def _draw(rng: Generator, n: int, D: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """H whose columns depend on one another and have a mean, weights, and W."""
    H = rng.standard_normal((6 * n, n)) * np.linspace(0.5, 1.5, n) @ toy.haar(rng, n) + 0.5
    return H, rng.uniform(0.2, 3.0, len(H)), rng.standard_normal((n, D))


def _moment_cases(rng: Generator) -> list[Case]:
    cases = []
    for n in (2, 3, 4, 6):
        H, w, _ = _draw(rng, n, 1)
        cases.append(Case({"n": n, "T": len(H)}, {"H": H, "w": w}))
    return cases


def _judge_moment(arguments: Mapping[str, Any], C: np.ndarray) -> Failure | None:
    H, w = arguments.values()
    mistakes = {
        "The tokens are not weighted.": _moment(H, np.ones_like(w)),
        "The weight is not squared: it stands in both factors.": _moment(H, np.sqrt(w)),
        "It is divided by the number of tokens; C is a sum.": _moment(H, w) / len(H),
        "It is centred: no mean is subtracted here.": _moment(H - H.mean(0), w),
    }
    return Places().add("C", _moment(H, w), C, mistakes, "which number of a token stands in both factors?").failure()


def _problem(rng: Generator, n: int, D: int) -> dict[str, Any]:
    H, w, W = _draw(rng, n, D)
    C = _moment(H, w)
    return {"C": C, "W": W, "ridge": float(0.1 * np.trace(C) / n)}


def _solved_cases(rng: Generator) -> list[Case]:
    return [Case({"n": n, "D": D}, _problem(rng, n, D)) for n, D in ((3, 2), (4, 3), (5, 2), (7, 4), (8, 3))]


def _scores(C: np.ndarray, W: np.ndarray, ridge: float) -> np.ndarray:
    return np.square(W).sum(1) / np.diag(np.linalg.inv(C + ridge * np.eye(len(C))))


def _judge_scores(arguments: Mapping[str, Any], scores: np.ndarray) -> Failure | None:
    C, W, ridge = arguments.values()
    size, D = np.square(W).sum(1), np.diag(C + ridge * np.eye(len(C)))
    mistakes = {
        "This is the diagonal of C + lambda I, without the inverse: the cost if no other neuron is solved for.": size
        * D,
        "It is multiplied by the inverse's diagonal; the score is divided by it.": size * size / _scores(C, W, ridge),
        "The norm of W_i is not squared.": _scores(C, W, ridge) / np.sqrt(size),
        "The ridge is missing.": _scores(C, W, 0.0),
        "W is left out.": _scores(C, W, ridge) / size,
    }
    return Places().add("scores", _scores(C, W, ridge), scores, mistakes, "which diagonal is it?").failure()


def _solve_cases(rng: Generator) -> list[Case]:
    cases = []
    for case in _solved_cases(rng):
        n = case.sizes["n"]
        kept = np.sort(rng.choice(n, n - n // 2, replace=False))
        cases.append(Case({**case.sizes, "k": len(kept)}, {**case.arguments, "kept": kept}))
    return cases


def _solve(C: np.ndarray, W: np.ndarray, ridge: float, kept: np.ndarray) -> np.ndarray:
    """W_K + (C_KK + lambda I)^-1 C_KM W_M."""
    gone = np.setdiff1d(np.arange(len(C)), kept)
    left = C[np.ix_(kept, kept)] + ridge * np.eye(len(kept))
    return W[kept] + np.linalg.solve(left, C[np.ix_(kept, gone)] @ W[gone])


def _judge_solve(arguments: Mapping[str, Any], V: np.ndarray) -> Failure | None:
    C, W, ridge, kept = arguments.values()
    C_KK = C[np.ix_(kept, kept)]
    left, added = C_KK + ridge * np.eye(len(kept)), _solve(C, W, ridge, kept) - W[kept]
    mistakes = {
        "This is plain deletion: nothing makes up for the deleted neurons.": W[kept],
        "The ridge pulls towards zero; it must pull towards W_K.": np.linalg.solve(left, C[kept] @ W),
        "The ridge is missing.": _solve(C, W, 0.0, kept),
        "This is what must be added to W_K, without W_K.": added,
        "What is added has the wrong sign.": W[kept] - added,
        "The ridge is inside twice: on the right-hand side, too.": np.linalg.solve(
            left, C[kept] @ W + 2 * ridge * W[kept]
        ),
    }
    hint = "what must the kept neurons write besides their own rows?"
    return Places().add("W", _solve(C, W, ridge, kept), V, mistakes, hint).failure()


def _thin_cases(rng: Generator) -> list[Case]:
    """In the last one every known mistake leaves other neurons than the right way: drawn again until it does."""
    cases = []
    for n, D, count in ((3, 2, 1), (4, 3, 2), (5, 2, 3), (6, 3, 3)):
        given = _problem(rng, n, D) | {"count": count}
        while n > 5 and any(np.array_equal(_thin(**given)[0], kept) for kept in _thin_mistakes(**given).values()):
            given = _problem(rng, n, D) | {"count": count}
        cases.append(Case({"n": n, "D": D, "count": count}, given))
    return cases


def _thin_mistakes(C: np.ndarray, W: np.ndarray, ridge: float, count: int) -> dict[str, np.ndarray]:
    """The neurons that are kept after each mistake."""

    def without_inverse(C: np.ndarray, W: np.ndarray, ridge: float) -> np.ndarray:
        return np.square(W).sum(1) * (np.diag(C) + ridge)

    def reversed_scores(C: np.ndarray, W: np.ndarray, ridge: float) -> np.ndarray:
        return -_scores(C, W, ridge)

    once = np.sort(_scores(C, W, ridge).argsort()[count:]).astype(np.float64)
    return {
        "They are scored once; after each deletion the others have other scores.": once,
        "They are scored with the first W, not with the solved one.": _thin(C, W, ridge, count, again=False)[0],
        "The scores are those without the inverse.": _thin(C, W, ridge, count, without_inverse)[0],
        "The most important neurons are deleted.": _thin(C, W, ridge, count, reversed_scores)[0],
    }


def _thin(
    C: np.ndarray, W: np.ndarray, ridge: float, count: int, score: Any = _scores, again: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Without `again`, neurons are scored with the first output matrix."""
    kept, V = np.arange(len(C)), W
    for _ in range(count):
        costs = score(C[np.ix_(kept, kept)], V if again else W[kept], ridge)
        kept = np.delete(kept, costs.argmin())
        V = _solve(C, W, ridge, kept)
    return kept.astype(np.float64), V


def _judge_thin(arguments: Mapping[str, Any], result: tuple) -> Failure | None:
    C, W, ridge, count = arguments.values()
    kept, V = _thin(C, W, ridge, count)
    places = Places().add(
        "kept", kept, result[0], _thin_mistakes(C, W, ridge, count), "who is the cheapest, when some are gone already?"
    )
    if close(kept, result[0]):
        mistakes = {"This is plain deletion: solve for the output matrix of the kept neurons.": W[kept.astype(int)]}
        places.add("W", V, result[1], mistakes, "which W does `solve` start from?")
    return places.failure()


A8 = read(
    "a8",
    second_moment=(_moment_cases, lambda given: Array("C", (given["H"].shape[1],) * 2), _judge_moment),
    scores=(_solved_cases, lambda given: Array("scores", (len(given["C"]),)), _judge_scores),
    solve=(_solve_cases, lambda given: Array("W", (len(given["kept"]), given["W"].shape[1])), _judge_solve),
    thin=(
        _thin_cases,
        lambda given: tuple(
            Array(name, (len(given["C"]) - given["count"], *given["W"].shape[1:][:sides]))
            for name, sides in (("kept", 0), ("W", 1))
        ),
        _judge_thin,
    ),
)
check = checker(A8)
