"""The capstone's table: what the paper's method, neurons alone and the best mixture reach, as its judge measures.

    python notebooks/measure/capstone.py

Each method is as large as it may be: the paper's has the largest width, neurons alone the largest number.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import minislice
from minislice.architecture.modeling import without_memory
from minislice.measuring.cost import parameters
from minislice.measuring.shapes import sliced_config
from minislice.measuring.tables import markdown
from minislice.teaching.assignments.c1 import C1, GOALS, SIZE, frozen, measure

NAMES = {"neurons": "neurons alone", "slicegpt": "the paper's method", "mixed": "the best mixture (`compress`)"}
KEPT = {"drop": [], "repair": 0}


def plans() -> dict[str, dict[str, Any]]:
    """What each method hands in."""
    model, tokens, _, _ = frozen()
    D, n, layers = (getattr(model.config, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    most = SIZE * parameters(model)

    def largest(plan: Callable[[int], dict[str, Any]], whole: int) -> dict[str, Any]:
        def size(count: int) -> int:
            return parameters(without_memory(sliced_config(model.config, **plan(count))))

        return plan(bisect_right(range(1, whole + 1), most, key=size))

    paper = largest(lambda k: {"width": [k] * 2 * layers + [D], "neurons": [n] * layers, "adapter": "full"}, D)
    fewer = largest(lambda m: {"width": [D] * (2 * layers + 1), "neurons": [m] * layers, "adapter": "none"}, n)
    options = minislice.plan_compression(model, tokens, size=SIZE).options
    blocks = 2 * layers - len(options["drop"])
    mixed = {**options, "width": [options["width"]] * blocks + [D], "repair": int(options["repair"])}
    return {"neurons": {**fewer, **KEPT}, "slicegpt": {**paper, **KEPT}, "mixed": mixed}


def main() -> None:
    every, points = plans(), C1.questions[0].parts
    lines = []
    for name, plan in every.items():
        print(name, plan)
        share, ratio = measure(plan)
        lines.append([f"{NAMES[name]}, {share:.1%}", str(ratio), f"{GOALS[name]:.2f}", str(points[name])])
    heads = [f"with at most {SIZE:.0%} of the parameters", "perplexity over dense", "reach", "points"]
    print(markdown(heads, lines))


if __name__ == "__main__":
    main()
