"""On a GPU: every way that weights and signals take there, against the same on the CPU.

    MINISLICE_TEST_GPU=1 pytest tests/test_cuda.py

Otherwise all is skipped: `conftest` hides GPUs from the other tests.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import PAPERS, Recipe
from streamed import same_weights

import minislice
from minislice.architecture.network import network
from minislice.command.cli import main
from minislice.corpus.embedded import EMBEDDED
from minislice.corpus.text import load_text, sample, tokenize, windows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OPTIONS = {
    "low-rank": {"slicing": 0.25},
    "repaired": {"slicing": 0.25, "adapter": "none", "repair": True},
    "neurons": {"slicing": 0.25, "neurons": 0.25, "repair": True, "drop": [1]},
}


def loaded(name: str, device: str = "cuda"):
    model, tokenizer = minislice.load(name, dtype="float32", device=device)
    calibration = sample(tokenize(load_text("embedded"), tokenizer), 24, 128)
    return model, calibration, windows(tokenize(load_text("embedded", "test"), tokenizer), 128, 8)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", PAPERS)
def test_slicing_there_is_slicing_here(family, options):
    recipe = Recipe(family, padding="left")
    here, there = recipe.model(), recipe.model().cuda()
    for model in (here, there):
        minislice.slice_model(model, recipe.tokens(), recipe.mask(), **OPTIONS[options])
    assert {parameter.device.type for parameter in there.parameters()} == {"cuda"}
    assert network(there).widths == network(here).widths
    with torch.no_grad():
        expected, found = here(recipe.tokens()).logits, there(recipe.tokens().cuda()).logits.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_invariance_is_found_and_perplexities_agree_in_every_dtype(name):
    model, calibration, evaluation = loaded(name)
    assert (found := minislice.verify(model, calibration[:4])).passed, found
    assert (found := minislice.verify(model, calibration[:1], symmetries=True, dtypes=["float64"])).passed, found
    perplexities = {}
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16"), ("cuda", "float16")):
        model, calibration, evaluation = loaded(name, device)
        minislice.slice_model(model.to(getattr(torch, dtype)), calibration, slicing=0.25)
        perplexities[device, dtype] = minislice.perplexity(model, evaluation)
    expected = perplexities.pop(("cpu", "float32"))
    assert perplexities["cuda", "float32"] == pytest.approx(expected, rel=1e-3)
    assert list(perplexities.values()) == pytest.approx([expected] * 3, rel=0.02)


def test_tf32_does_not_reach_the_weights():
    """Products of weights are in full float32, also where a user lets torch round their factors."""
    model, _, _ = loaded("mini-llama")
    other = copy.deepcopy(model)
    minislice.rotate(model)
    torch.set_float32_matmul_precision("high")
    try:
        minislice.rotate(other)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("repair", [False, True])
def test_streaming_equals_memory_bit_for_bit(repair, tmp_path):
    model, calibration, _ = loaded("mini-llama")
    model.save_pretrained(tmp_path / "dense")
    options = {"slicing": 0.25, "adapter": "none", "repair": repair}
    minislice.slice_streamed(tmp_path / "dense", calibration, tmp_path / "streamed", device="cuda", **options)
    minislice.slice_model(model, calibration, **options)
    model.save_pretrained(tmp_path / "memory")
    same_weights(tmp_path / "memory", tmp_path / "streamed")


def test_a_plan_is_found_and_kept_on_the_models_own_text_and_recovery_lowers_perplexity():
    pytest.importorskip("peft")
    model, _, evaluation = loaded("mini-opt")
    own = minislice.own_text(model, 24, 128)
    assert own.device.type == "cpu" and torch.equal(minislice.own_text(model, 24, 128), own)
    parameters = minislice.parameters(model)
    minislice.compress(model, own, size=0.8)
    assert 0.79 * parameters < minislice.parameters(model) <= 0.8 * parameters
    before = minislice.perplexity(model, evaluation)
    minislice.recover(model, own, steps=20, learning_rate=1e-3, batch_size=8, accumulation=1)
    assert model.device.type == "cuda" and minislice.perplexity(model, evaluation) < before


def test_commands(tmp_path, capsys, monkeypatch):
    """They take the GPU where there is one, without being told."""
    monkeypatch.chdir(tmp_path)  # the demo leaves a picture
    small = ["--samples", "16", "--seqlen", "64"]
    for command in (
        ["demo", "--quiet"],
        ["slice", "mini-opt", *small, "--eval-samples", "4", "--out", "sliced"],
        ["slice", "mini-phi", *small, "--stream", "--out", "streamed"],
        ["compare", "mini-llama", *small, "--eval-samples", "4", "--sizes", "0.8", "--out", "compared"],
        ["generate", "sliced", "--prompt", "def", "--max-new-tokens", "4"],
        ["cost", "mini-opt", "--slicing", "0.25", "--products", "3"],
    ):
        assert main(command) == 0, capsys.readouterr()
    rows = [json.loads(line) for line in Path("compared/results.jsonl").read_text().splitlines()]
    assert torch.cuda.get_device_name() in rows[0]["hardware"]


def test_torchrun_with_nccl_agrees_with_one_process(tmp_path):
    for name, launcher in {"one": [], "group": ["-m", "torch.distributed.run", "--nproc-per-node", "1"]}.items():
        arguments = ["slice", "mini-llama", "--samples", "6", "--seqlen", "64", "--stream", "--dtype", "float32"]
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "minislice", *arguments, "--quiet", "--out", str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])},
        )
        assert done.returncode == 0, done.stderr
    same_weights(tmp_path / "one", tmp_path / "group")
