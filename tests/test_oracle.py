"""Against recorded results: perplexities of the authors' released code, on trained models and the same batches."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minislice import SlicingOptions, fuse, parameters, perplexity, slice_model

BATCHES = ("calibration", "evaluation")
MODELS = ("babyllama-tok361", "opt-dev", "phi-dev", "stories260K")


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_perplexities_dense_fused_and_sliced_are_the_recorded_ones(name, assets):
    folder = assets / "oracle" / name
    expected = json.loads((folder / "expected.json").read_text())
    calibration, evaluation = (torch.from_numpy(np.load(folder / f"{part}.npy")).long() for part in BATCHES)

    def load():
        return AutoModelForCausalLM.from_pretrained(assets / "models" / name, dtype=torch.float32).eval()

    for state, model in {"dense": load(), "fused": fuse(load())}.items():
        assert parameters(model) == expected[f"{state}_parameters"]
        assert perplexity(model, evaluation, batch_size=16) == pytest.approx(expected[f"{state}_perplexity"], rel=1e-5)
    few_tokens = "span 59 of 128 dimensions, and .* were kept"  # babyllama's batches: part of its basis is arbitrary
    assert expected["sliced"]
    for width, row in expected["sliced"].items():
        options = SlicingOptions.paper(width=int(width), signal="raw")
        with pytest.warns(UserWarning, match=few_tokens) if name == MODELS[0] else nullcontext():
            model = slice_model(load(), calibration, batch_size=16, **vars(options))
        assert parameters(model) == row["parameters"]
        assert perplexity(model, evaluation, batch_size=16) == pytest.approx(row["perplexity"], rel=1e-3)


def test_every_recorded_model_is_compared(assets):
    assert sorted(path.parent.name for path in (assets / "oracle").glob("*/expected.json")) == sorted(MODELS)
