"""Against recorded results: perplexities of the authors' released code, on trained models and the same batches."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minislice import SlicingOptions, fuse, parameters, perplexity, slice_model

ASSETS = Path(os.environ.get("MINISLICE_TEST_ASSETS", "absent"))  # they aren't part of the repository
pytestmark = pytest.mark.skipif(not ASSETS.is_dir(), reason="MINISLICE_TEST_ASSETS names no folder of models")
SMALL, SLOW = ("babyllama-tok361", "stories260K"), ("opt-dev", "phi-dev")


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_parameters_and_perplexities_dense_fused_and_sliced_are_the_recorded_ones(name):
    folder = ASSETS / "oracle" / name
    recorded = json.loads((folder / "expected.json").read_text())
    calibration, evaluation = (
        torch.from_numpy(np.load(folder / f"{part}.npy")).long() for part in ("calibration", "evaluation")
    )

    def load():
        return AutoModelForCausalLM.from_pretrained(ASSETS / "models" / name, dtype=torch.float32).eval()

    assert parameters(load()) == recorded["dense_parameters"]
    assert parameters(fuse(load())) == recorded["fused_parameters"]
    assert perplexity(load(), evaluation, batch_size=16) == pytest.approx(recorded["dense_perplexity"], rel=1e-5)
    few_tokens = "span 59 of 128 dimensions, and .* were kept"  # babyllama's batches: part of its basis is arbitrary
    *_, (narrowest, expected) = recorded["sliced"].items()
    options = SlicingOptions.paper(width=int(narrowest), signal="raw")
    with pytest.warns(UserWarning, match=few_tokens) if name == SMALL[0] else nullcontext():
        model = slice_model(load(), calibration, batch_size=16, **vars(options))
    assert parameters(model) == expected["parameters"]
    assert perplexity(model, evaluation, batch_size=16) == pytest.approx(expected["perplexity"], rel=1e-3)
