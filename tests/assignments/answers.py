"""Where the answers in this folder are collected: right ones of many styles, and wrong ones with what must be said."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Wrong:
    """A wrong answer, and pieces of the message that it must get: the place first, then the mistake."""

    question: str
    name: str
    function: Any
    says: tuple[str, ...]


RIGHT: dict[str, list] = {}  # by "a1.center"
WRONG: dict[str, Wrong] = {}  # by "a1.center: mean_in_place_of_the_rest"


def right(question):
    """Collect a function, or a lambda, as a right answer."""

    def collect(function):
        RIGHT.setdefault(question, []).append(function)
        return function

    return collect


def wrong(question, *says):
    """Collect a function as a wrong answer that must get a message with these pieces."""

    def collect(function):
        WRONG[f"{question}: {function.__name__}"] = Wrong(question, function.__name__, function, says)
        return function

    return collect
