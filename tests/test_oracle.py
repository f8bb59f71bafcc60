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


@pytest.fixture(params=MODELS, scope="module")
def recorded(request, assets):
    """One model of the oracle: its folder, what the authors' code makes of it, and its two sets of batches."""
    folder = assets / "oracle" / request.param
    batches = [torch.from_numpy(np.load(folder / f"{part}.npy")).long() for part in ("calibration", "evaluation")]
    return assets / "models" / request.param, json.loads((folder / "expected.json").read_text()), *batches


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_every_recorded_model_is_compared(assets):
    assert sorted(path.parent.name for path in (assets / "oracle").glob("*/expected.json")) == sorted(MODELS)


def test_dense_and_fused_perplexity_are_the_recorded_ones(recorded):
    folder, expected, _, evaluation = recorded
    for state, model in {"dense": load(folder), "fused": fuse(load(folder))}.items():
        assert parameters(model) == expected[f"{state}_parameters"]
        found = perplexity(model, evaluation, batch_size=16)
        assert math.isclose(found, expected[f"{state}_perplexity"], rel_tol=1e-5)


def test_sliced_perplexity_and_parameters_are_the_recorded_ones(recorded):
    folder, expected, calibration, evaluation = recorded
    assert expected["sliced"]
    few_tokens = "span 59 of 128 dimensions, and .* were kept"  # babyllama's batches: part of its basis is arbitrary
    for width, row in expected["sliced"].items():
        options = SlicingOptions.paper(width=int(width), signal="raw")
        with pytest.warns(UserWarning, match=few_tokens) if folder.name == MODELS[0] else nullcontext():
            model = slice_model(load(folder), calibration, batch_size=16, **vars(options))
        assert parameters(model) == row["parameters"]
        assert math.isclose(perplexity(model, evaluation, batch_size=16), row["perplexity"], rel_tol=1e-3)
