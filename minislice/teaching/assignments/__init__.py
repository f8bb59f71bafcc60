"""Assignments: nine in which a student builds SliceGPT in NumPy, three in which they catch mistakes, and a capstone.

`exercise` says what a question is and how an answer is judged. `texts/` has the questions in words; `a1` to `a9`, `m1`
to `m3` and `c1` have their cases and judges. A student's notebook calls `feedback`. The answers, the builder and the
grader are in `notebooks/assignments`. Nothing here but the capstone's judge needs the rest of minislice.
"""

from importlib import import_module

from .exercise import Assignment

NAMES = ("a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9", "m1", "m2", "m3", "c1")


def assignment(name: str) -> Assignment:
    """The assignment "a3" or "A3"."""
    if name.lower() not in NAMES:
        raise ValueError(f"there is no assignment {name!r}; there are {', '.join(NAMES)}")
    return getattr(import_module(f".{name.lower()}", __name__), name.upper())
