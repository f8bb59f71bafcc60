"""What the value of an option may be: one set of checks for all public functions, and so for the command line.

Each takes an option's name and its value. Numbers may be Python's or NumPy's; True and False are not numbers.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

LARGEST = 2**63 - 1  # torch's integers end here
LARGEST_SEED = 2**32 - 1  # NumPy's generators, which other libraries seed too, take no larger one


def option(default: Any, text: str) -> Any:
    """A field of a dataclass that is also an option of a command; the text is its help."""
    return dataclasses.field(default=default, metadata={"help": text})


def is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_several(value: object) -> bool:
    """A list, a tuple, a set ...: it can be read more than once, and it is not a text, nor a tensor of one number."""
    return isinstance(value, Collection) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) > 0


def are_ints(values: object) -> bool:
    return is_several(values) and all(map(is_int, values))


def require(fits: bool, name: str, what: str, value: object) -> None:
    """Raise a ValueError unless the value fits."""
    if not fits:
        text = repr(value)
        raise ValueError(f"{name} must be {what}, got {text if len(text) <= 80 else f'{text[:77]}...'}")


def require_int(name: str, value: object, least: int = 1, most: int = LARGEST) -> int:
    """The value as Python's int, which JSON can hold."""
    limits = f"of at least {least}" if most == LARGEST else f"from {least} to {most}"
    require(is_int(value) and least <= value <= most, name, f"a whole number {limits}", value)
    return int(value)


def require_seed(value: object) -> int:
    return require_int("seed", value, 0, LARGEST_SEED)


def require_number(
    name: str, value: object, *, above: float | None = None, below: float = math.inf, most: float | None = None
) -> float:
    """The value as Python's float: at least 0, or greater than `above`; less than `below`, or at most `most`."""
    low, high = "0 <=" if above is None else f"{above} <", f"< {below}" if most is None else f"<= {most}"
    fits = is_number(value) and (value >= 0 if above is None else above < value)
    fits = fits and (value < below if most is None else value <= most)
    require(fits, name, f"a number, {low} {name} {high}", value)
    return float(value)


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    require(isinstance(value, str) and value in choices, name, f"one of {', '.join(choices)}", value)


def require_flag(name: str, value: object) -> None:
    require(isinstance(value, bool), name, "True or False", value)


def require_package(package: str, purpose: str, extra: str) -> None:
    """Raise a ValueError where a package isn't installed that one of pyproject.toml's extras names."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f'{purpose} needs the package {package}: run pip install -e ".[{extra}]" in a checkout of minislice'
        )
