"""The form of a result: its types, its shapes, and that its numbers are finite."""

from dataclasses import dataclass
from types import UnionType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Array:
    """An array of this shape, or one number if the shape is (). A side given by a letter has any length."""

    name: str
    shape: tuple[int | str, ...] = ()
    optional: bool = False  # None is right as well
    numbers: str = "float64"  # or int64, where only whole numbers are right


# The form of a result: an Array, a type, None, or a tuple, list or dictionary of forms. NumPy's numbers are Python's.
Form = Any


class Misfit(Exception):
    """A result has another form. Its arguments: the place, and what is wrong there."""


def conform(form: Form, result: Any, name: str, misfits: list[Misfit]) -> Any:
    """The result in its form: tuples or lists as in the form, arrays with its numbers; or a Misfit.

    `misfits` collects the misfits of arrays; NaN takes the place of such an array.
    """
    if form is None or (isinstance(form, Array) and form.optional and result is None):
        if result is not None:
            raise Misfit(name, f"expected None, got {described(result)}")
        return None
    if isinstance(form, Array):
        try:
            return _array(form, result)
        except Misfit as misfit:
            misfits.append(misfit)
            return np.full([side if isinstance(side, int) else 1 for side in form.shape], np.nan)
    if isinstance(form, (type, UnionType)):
        result = result.item() if isinstance(result, np.generic) else result
        if not isinstance(result, form):
            wanted = form.__name__ if isinstance(form, type) else form
            raise Misfit(name, f"expected {wanted}, got {described(result)}")
        return result
    if isinstance(form, dict):
        if not isinstance(result, dict):
            raise Misfit(name, f"expected a dictionary, got {described(result)}")
        return {key: conform(part, result.get(key), key, misfits) for key, part in form.items()}
    names = [part.name if isinstance(part, Array) else "the dictionary" for part in form]
    if not isinstance(result, (tuple, list)) or len(result) != len(form):
        wanted = f"{len(form)} values, {', '.join(names)}"
        raise Misfit(name, f"expected {wanted}; got {described(result)}")
    return type(form)(conform(*each, misfits) for each in zip(form, result, names, strict=True))


def _array(form: Array, result: Any) -> np.ndarray | np.number:
    number = isinstance(result, (int, float, np.number)) and not isinstance(result, bool)
    array = np.asarray(result) if number or isinstance(result, np.ndarray) else np.array(None)
    whole = form.numbers == "int64"
    if isinstance(result, (int, np.integer)) and abs(int(result)) >= 2**63:
        raise Misfit(form.name, "far too large")
    is_float = array.dtype.kind == "f" if number else array.dtype == np.float64
    fits = array.dtype.kind in "iu" or (is_float and not whole)
    fits = fits and array.ndim == len(form.shape)
    if not fits or any(side != n for side, n in zip(form.shape, array.shape, strict=True) if isinstance(side, int)):
        wanted = "an int" if whole else "a float"
        if form.shape:
            wanted = f"{form.numbers} [{', '.join(map(str, form.shape))}]"
        raise Misfit(form.name, f"expected {wanted}, got {described(result)}")
    if not np.isfinite(array).all():
        first = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        what = "NaN" if np.isnan(array[first]) else "infinity"
        raise Misfit(form.name, f"{what} at {list(first)}" if first else what)
    return array.astype(form.numbers)[()]


def described(value: Any) -> str:
    """Type and shape in words: "float64 [6, 10]", "list of 3", "None"."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} [{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list, dict)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def same(a: Any, b: Any) -> bool:
    """Two plain values are equal to the last bit; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
