"""Seconds of each phase of slicing: the functions that do it, with a clock around them."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

import minislice.slicing
from minislice.calibration import Calibration

# By phase, where the pass looks its work up.
WORK = {
    "forward": [(Calibration, "embed"), (Calibration, "forward")],
    "projection": [(Calibration, "project"), (Calibration, "add")],
    "weights": [(minislice.slicing, f"fold_{what}") for what in ("embedding", "reader", "writer")],
    "covariance": [(Calibration, "covariance")],
    "eigendecomposition": [(minislice.slicing, "principal_components")],
    "adapters": [(minislice.slicing, "make_adapter")],
}


@contextmanager
def timed() -> Iterator[Counter]:
    """The seconds by phase of what runs inside the block."""
    seconds = Counter()

    def clocked(function, phase: str):
        def call(*args, **kwargs):
            began = time.perf_counter()
            result = function(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # its calls return before the work is done
            seconds[phase] += time.perf_counter() - began
            return result

        return call

    with ExitStack() as stack:
        for phase, places in WORK.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, clocked(getattr(owner, name), phase)))
        yield seconds
