"""Tools for judges: equality up to rounding, place by place, and the words for a difference."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .exercise import Failure
from .forms import Array, Form, Number

TOLERANCE = 1e-10  # relative to the largest value of an array, or absolute if that is below 1


def close(expected: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Equal to within `tolerance` of the largest expected value, or of 1. `expected` may be one number for all."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.ndim and expected.shape != got.shape:
        return False
    return bool((np.abs(expected - got) <= tolerance * max(1.0, np.abs(expected).max(initial=0.0))).all())


def orthonormal(place: str, Q: np.ndarray) -> Failure | None:
    """A failure unless the columns of Q are orthonormal."""
    apart = np.abs(Q.T @ Q - np.eye(Q.shape[1]))
    if not apart.size or apart.max() <= 1e-8:
        return None
    worst = [int(i) for i in np.unravel_index(apart.argmax(), apart.shape)]
    numbers = f"{place}^T {place} differs from the identity by {apart.max():.2g} at {worst}"
    return Failure(place, "its columns are not orthonormal", numbers)


def named(mistakes: Mapping[str, Any], got: Any) -> str:
    """The first mistake, a sentence, that gives the same value; an empty text if none does."""
    return next((sentence for sentence, value in mistakes.items() if close(value, got, 1e-7)), "")


class Places:
    """Values and what they must be, place by place: "W_in[0]", "b_out[1]", "k"."""

    def __init__(self) -> None:
        self._wrong: list[Failure] = []
        self._right: dict[str, bool] = {}  # by name, in order: every place of this name is right

    def add(
        self,
        place: str,
        expected: Any,
        got: Any,
        mistakes: Mapping[str, Any] | None = None,
        hint: str = "",
        alike: Callable[[Any, Any], bool] = close,
    ) -> "Places":
        """Compare one place.

        Args:
            mistakes: values after well-known mistakes, by the sentence that names the mistake. The sentence is told if
                only one mistake gives this value.
            hint: a question that leads on.
            alike: compares the expected value, or a mistake's, with the given one.
        """
        name, right = place.split("[")[0], alike(expected, got)
        self._right[name] = right and self._right.get(name, True)
        if not right:
            what, values = difference(expected, got)
            likely = [sentence for sentence, value in (mistakes or {}).items() if alike(value, got)]
            self._wrong.append(Failure(place, what, values, (), likely[0] if len(likely) == 1 else "", hint))
        return self

    def failure(self) -> Failure | None:
        """The first place that is wrong, with the names of what is right and what is wrong, or None."""
        fine = tuple(name for name, right in self._right.items() if right)
        wrong = tuple(name for name, right in self._right.items() if not right)
        return replace(self._wrong[0], fine=fine, wrong=wrong) if self._wrong else None


Wanted = Iterator[tuple[str, Any, Mapping[str, Any], str]]  # place, right value, mistakes and hint of each part


def compared(wanted: Callable[..., Wanted]) -> tuple[Callable[..., Form], Callable[..., Failure | None]]:
    """The form and the judge of a question with one right result, which `wanted` gives for the arguments."""

    def returns(**arguments: Any) -> Form:
        parts = [(place, value) for place, value, *_ in wanted(**arguments)]
        forms = [Array(p, v.shape) if isinstance(v, np.ndarray) else Number(p, type(v)) for p, v in parts]
        return forms[0] if len(forms) == 1 else tuple(forms)

    def judge(result: Any, **arguments: Any) -> Failure | None:
        parts, places = list(wanted(**arguments)), Places()
        for got, (place, *what) in zip([result] if len(parts) == 1 else result, parts, strict=True):
            places.add(place, what[0], got, *what[1:])
        return places.failure()

    return returns, judge


def difference(expected: Any, got: Any) -> tuple[str, str]:
    """Where the first entry differs, and its two values, in words."""
    expected, got = np.asarray(expected, dtype=np.float64), np.asarray(got, dtype=np.float64)
    apart = np.abs(expected - got)
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    first = tuple(int(i) for i in np.argwhere(~(apart <= TOLERANCE * scale))[0])
    relative = apart.max() / max(np.abs(expected).max(), np.finfo(float).tiny)
    at = f"first difference at {list(first)}" if first else "another value"
    numbers = f"expected {expected[first]:.4g}, got {got[first]:.4g}"
    return at, f"{numbers} (max relative {relative:.2g})" if first else numbers
