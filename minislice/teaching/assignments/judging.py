"""What judges compare with: equality up to rounding, place by place, and how a difference is told."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .exercise import Failure

TOLERANCE = 1e-10  # of a value, relative to the largest in its array, or absolute below 1


def close(expected: Any, got: Any, tolerance: float = TOLERANCE) -> bool:
    """Equal to within `tolerance` of the largest expected value, or of 1; one number may be expected everywhere."""
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
    return Failure("values", place, "its columns are not orthonormal", numbers)


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
            expected: an array or a number; got has the same shape.
            mistakes: what the value would be after a well-known mistake, by the sentence that names it. It is told if
                no other mistake gives the same.
            hint: a question that leads on.
            alike: whether a value will do in place of the expected one, or of a mistake's.
        """
        name, right = place.split("[")[0], alike(expected, got)
        self._right[name] = right and self._right.get(name, True)
        if not right:
            what, values = difference(expected, got)
            named = [sentence for sentence, value in (mistakes or {}).items() if alike(value, got)]
            self._wrong.append(Failure("values", place, what, values, (), named[0] if len(named) == 1 else "", hint))
        return self

    def failure(self) -> Failure | None:
        """The first place that is wrong, with the names of what is right and what is wrong, or None."""
        fine = tuple(name for name, right in self._right.items() if right)
        wrong = tuple(name for name, right in self._right.items() if not right)
        return replace(self._wrong[0], fine=fine, wrong=wrong) if self._wrong else None


def difference(expected: Any, got: Any) -> tuple[str, str]:
    """Two sentences on the first entry that differs: without and with its values."""
    expected, got = np.asarray(expected, dtype=np.float64), np.asarray(got, dtype=np.float64)
    apart = np.abs(expected - got)
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    first = tuple(int(i) for i in np.argwhere(~(apart <= TOLERANCE * scale))[0])
    relative = apart.max() / max(np.abs(expected).max(), np.finfo(float).tiny)
    at = f"first difference at {list(first)}" if first else "another value"
    numbers = f"expected {expected[first]:.4g}, got {got[first]:.4g}"
    return at, f"{numbers} (max relative {relative:.2g})" if first else numbers
