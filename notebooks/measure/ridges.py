"""Which ridge to solve with: perplexity on validation text, by the ridge of `neurons` and of `inner`'s repair.

    python notebooks/measure/ridges.py

The embedded models, with their own calibration text; with MINISLICE_TEST_ASSETS set, the four of its folder `models`
too, on token batches that lie in its folder `oracle`. The last quarter of the calibration sequences is the validation
text; no evaluation text is read. A third of the neurons of each MLP is deleted (`neurons`); the signal is sliced to
three quarters, without adapters, and repaired (`repair`). Each number is the ratio of perplexities to the dense one's.
"""

import copy

import torch
from adapter_forms import models_at_hand

import minislice
from minislice import delete_neurons, slice_model
from minislice.beyond import inner, neurons
from minislice.measuring.tables import markdown

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def ratios(model, calibration: torch.Tensor, validation: torch.Tensor) -> dict[str, list[float]]:
    """Perplexity over the dense model's, for each ridge."""
    dense, found = minislice.perplexity(model, validation), {"neurons": [], "repair": []}
    kept = neurons.RIDGE, inner.REPAIR_RIDGE
    for ridge in RIDGES:
        neurons.RIDGE, inner.REPAIR_RIDGE = ridge, kept[1]
        fewer = delete_neurons(copy.deepcopy(model), calibration, neurons=1 / 3)
        neurons.RIDGE, inner.REPAIR_RIDGE = kept[0], ridge
        sliced = slice_model(copy.deepcopy(model), calibration, slicing=0.25, adapter="none", repair=True)
        for name, other in {"neurons": fewer, "repair": sliced}.items():
            found[name].append(minislice.perplexity(other, validation) / dense)
    neurons.RIDGE, inner.REPAIR_RIDGE = kept
    return found


def main() -> None:
    lines = []
    for name, model, tokens, _ in models_at_hand():
        held_out = max(1, len(tokens) // 4)
        for lever, values in ratios(model, tokens[:-held_out], tokens[-held_out:]).items():
            lines.append([name, lever, *(f"{value:.3f}" for value in values)])
    print(markdown(["model", "lever", *(f"{ridge:g}" for ridge in RIDGES)], lines))


if __name__ == "__main__":
    main()
