"""All assignments, by name."""

from .a1 import A1
from .a2 import A2
from .a3 import A3
from .a4 import A4
from .a5 import A5
from .a6 import A6
from .a7 import A7
from .a8 import A8
from .a9 import A9
from .c1 import C1
from .exercise import Assignment
from .m1 import M1
from .m2 import M2
from .m3 import M3

ASSIGNMENTS: dict[str, Assignment] = {each.name: each for each in (A1, A2, A3, A4, A5, A6, A7, A8, A9, M1, M2, M3, C1)}


def assignment(name: str) -> Assignment:
    """The assignment "a3" or "A3"."""
    if name.lower() not in ASSIGNMENTS:
        raise ValueError(f"there is no assignment {name!r}; there are {', '.join(ASSIGNMENTS)}")
    return ASSIGNMENTS[name.lower()]
