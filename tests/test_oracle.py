"""Against recorded results: perplexities of the authors' released code, on trained models and the same batches."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minislice import fuse, parameters, perplexity, slice_model
from minislice.options import SlicingOptions

MODELS = ("babyllama-tok361", "opt-dev", "phi-dev", "stories260K")


class Recorded:
    """One model of the oracle: its batches, and what the authors' code makes of it."""

    def __init__(self, assets, name):
        self.path = assets / "models" / name
        folder = assets / "oracle" / name
        self.calibration, self.evaluation = (
            torch.from_numpy(np.load(folder / f"{part}.npy")).long() for part in ("calibration", "evaluation")
        )
        self.expected = json.loads((folder / "expected.json").read_text())

    def load(self):
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()

    def perplexity(self, model):
        return perplexity(model, self.evaluation, batch_size=16)


@pytest.fixture(params=MODELS)
def recorded(request, assets):
    return Recorded(assets, request.param)


def few_distinct_tokens(recorded):
    """The batches of babyllama show so few that part of its first basis is arbitrary, and slicing says so."""
    if recorded.path.name == "babyllama-tok361":
        return pytest.warns(UserWarning, match="span 59 of 128 dimensions, and .* were kept")
    return nullcontext()


def test_every_recorded_model_is_compared(assets):
    assert sorted(path.parent.name for path in (assets / "oracle").glob("*/expected.json")) == sorted(MODELS)


def test_dense_and_fused_perplexity_are_the_recorded_ones(recorded):
    model = recorded.load()
    assert parameters(model) == recorded.expected["dense_parameters"]
    assert math.isclose(recorded.perplexity(model), recorded.expected["dense_perplexity"], rel_tol=1e-5)
    fuse(model)
    assert parameters(model) == recorded.expected["fused_parameters"]
    assert math.isclose(recorded.perplexity(model), recorded.expected["fused_perplexity"], rel_tol=1e-5)


def test_sliced_perplexity_and_parameters_are_the_recorded_ones(recorded):
    assert recorded.expected["sliced"]
    for width, expected in recorded.expected["sliced"].items():
        options = SlicingOptions.paper(width=int(width), signal="raw")
        with few_distinct_tokens(recorded):
            model = slice_model(recorded.load(), recorded.calibration, batch_size=16, **vars(options))
        assert parameters(model) == expected["parameters"]
        assert math.isclose(recorded.perplexity(model), expected["perplexity"], rel_tol=1e-3)
