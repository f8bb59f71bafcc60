"""Folders that an earlier minislice saved (format 1, of minislice 0.1.0) still load, and compute what they did."""

import json
from pathlib import Path

import pytest
import torch
from models import Recipe

import minislice

FOLDER = Path(__file__).with_name("format1")
EXPECTED = json.loads((FOLDER / "expected.json").read_text())  # three logits, recorded when the folders were saved


@pytest.mark.parametrize("family", EXPECTED)
def test_a_folder_of_format_1_computes_what_it_did(family):
    model, _ = minislice.load(FOLDER / family)
    with torch.no_grad():
        logits = model(input_ids=Recipe(family, layers=1).tokens()[:1, :3]).logits[0, -1, :3]
    assert torch.allclose(logits, torch.tensor(EXPECTED[family]), rtol=1e-4)
    assert model.config.slicing["versions"].startswith("minislice 0.1.0")
