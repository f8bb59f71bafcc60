"""Tools for judges: equality up to rounding, place by place, and the words for a difference."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from .exercise import Case, Failure, Question
from .forms import Array, Form

TOLERANCE = 1e-10  # relative to the largest value of an array, or absolute if that is below 1


def close(expected: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Equal to within `tolerance` of the largest expected value, or of 1. `expected` may be one number for all."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.ndim and expected.shape != got.shape:
        return False
    return bool((_off(expected, got) <= tolerance).all())


def _off(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    """How far each entry is off, as a part of the largest expected value, or of 1."""
    return np.abs(expected - got) / max(1.0, np.abs(expected).max(initial=0.0))


@dataclass(frozen=True)
class Place:
    """A value in a result, and what it must be."""

    name: str  # "W_in[0]", "b_out[1]", "k"
    expected: Any
    mistakes: Mapping[str, Any] = field(default_factory=dict)  # wrong values, by the sentence that names the mistake
    hint: str = ""  # a question that leads on
    alike: Callable[[Any, Any], bool] = close  # compares the expected value, or a mistake's, with the given one
    got: Any = None

    def of(self, got: Any) -> "Place":
        """The place with what a result has there; None stands for zeros."""
        return replace(self, got=0 * self.expected if got is None else got)


def first_wrong(places: Iterable[Place]) -> Failure | None:
    """The first place that is wrong, with the names of what is right and what is wrong; None if all are right.

    A mistake is named if it alone gives the value.
    """
    wrong, names = [], {}  # in order: every place of this name is right
    for place in places:
        name, right = place.name.split("[")[0], place.alike(place.expected, place.got)
        names[name] = right and names.get(name, True)
        wrong += [] if right else [place]
    if not wrong:
        return None
    first = wrong[0]
    fine, not_fine = (tuple(name for name in names if names[name] == right) for right in (True, False))
    what, values, relative = difference(first.expected, first.got)
    likely = [sentence for sentence, value in first.mistakes.items() if first.alike(value, first.got)]
    nearly = relative <= 1e-5 and np.asarray(first.expected).dtype.kind == "f"
    float32 = "Nearly right: is something computed in float32?" if nearly else ""
    mistake = likely[0] if len(likely) == 1 else float32
    return Failure(first.name, what, values, fine, mistake, first.hint, not_fine)


def orthonormal(name: str, Q: np.ndarray) -> Place:
    """Q^T Q, where the columns of Q must be orthonormal."""
    hint, alike = f"the columns of {name} must be orthonormal.", partial(close, tolerance=1e-8)
    return Place(f"{name}^T {name}", np.eye(Q.shape[1]), hint=hint, alike=alike).of(Q.T @ Q)


Wanted = Iterator[Place]  # of each part of a result, before there is one


def compared(
    cases: Callable[[np.random.Generator], Iterable[Case]],
    wanted: Callable[..., Wanted],
    enough: Callable[..., bool] = lambda result, **arguments: False,
) -> Question:
    """A question with one right result, which `wanted` gives for the arguments; None may stand for zeros.

    Where a question leaves a choice, it is `enough` that another result computes the same.
    """

    def returns(**arguments: Any) -> Form:
        parts = [(place.name, np.asarray(place.expected)) for place in wanted(**arguments)]
        forms = [Array(name, right.shape, optional=not right.any(), numbers=right.dtype.name) for name, right in parts]
        return forms[0] if len(forms) == 1 else tuple(forms)

    def judge(result: Any, **arguments: Any) -> Failure | None:
        if enough(result, **arguments):
            return None
        places = list(wanted(**arguments))
        results = [result] if len(places) == 1 else result
        return first_wrong(map(Place.of, places, results))

    return Question(cases, returns, judge)


def difference(expected: Any, got: Any) -> tuple[str, str, float]:
    """Where the first entry differs, its two values, in words, and the largest difference by the largest entry."""
    expected, got = np.asarray(expected, dtype=np.float64), np.asarray(got, dtype=np.float64)
    first = tuple(np.argwhere(~(_off(expected, got) <= TOLERANCE))[0].tolist())
    relative = np.abs(expected - got).max() / max(np.abs(expected).max(), np.finfo(float).tiny)
    at = f"first difference at {list(first)}" if first else "another value"
    digits = 4 if f"{expected[first]:.4g}" != f"{got[first]:.4g}" else 12
    numbers = f"expected {expected[first]:.{digits}g}, got {got[first]:.{digits}g}"
    return at, f"{numbers} (max relative {relative:.2g})" if first else numbers, relative
