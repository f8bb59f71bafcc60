"""The scripts that measure run, at small size, and report what they say."""

import json
import math
import sys
from importlib import import_module

import pytest
import rulers
import torch
from budget_properties import silenced
from correlations import spearman
from models import Recipe

import minislice
from minislice.architecture.network import network
from minislice.beyond.rulers import block_costs
from minislice.corpus.batches import token_batches

ONCE = ["--rounds", "1", "--threads", "1"]
FEW = ["--shape", "tiny", "--samples", "2", "--seqlen", "64", "--beyond", "both"]
SMALL = {  # the arguments of a script, and what it reports
    "inference_cost": (["--layers", "1", "--vocabulary", "512", "--steps", "1", *ONCE], {"OPT", "LLaMA", "Phi"}),
    "slicing_cost": ([*FEW, *ONCE], {"slicing / forward", "by phase", "beyond / slicing"}),
    "streaming_cost": (["--shape", "tiny", "--threads", "1"], {"slicing / forward", "by phase", "peak, GiB"}),
}


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a script prints."""

    def printed(script: str, *arguments) -> str:
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        import_module(script).main()
        return capsys.readouterr().out

    return printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("script", SMALL)
def test_a_benchmark_runs_at_small_size_and_reports(script, printed):
    arguments, reported = SMALL[script]
    result = json.loads(printed(script, *arguments, "--json"))
    assert reported <= result.keys()
    assert all(seconds > 0 for seconds in result.get("by phase", {}).values())


@pytest.mark.slow
def test_the_rulers_of_an_embedded_model_are_reported(tmp_path, printed):
    small = ["--calibration", "2", "--seqlen", "48", "--held-out", "2", "--probes", "1", "--layers", "2"]
    measured = printed("rulers", "mini-phi", *small, "--boundaries", "2", "--out", tmp_path / "rows.jsonl")
    assert "block (2) | neurons 1/3 (2) | neurons 1/2 (2) | boundary (6) | all (12)" in measured
    assert measured == printed("rulers", "--table", "--out", tmp_path / "rows.jsonl")


def test_what_is_measured_is_what_a_budget_measures():
    recipe = Recipe("llama", layers=2)
    model = minislice.fuse(recipe.model())
    calibration, held_out = recipe.tokens(0), torch.cat([recipe.tokens(1), recipe.tokens(2)])
    items = rulers.measure(recipe.model(), calibration, held_out, probes=4)
    costs = block_costs(network(model), *(token_batches(model, ids, None, 4) for ids in (calibration, held_out[:4])))
    found = {kind: [i.rulers["divergence"] for i in items if i.kind == kind] for kind in ("block", "neurons 1/3")}
    assert found["block"] == pytest.approx([cost.dropped for cost in costs], abs=1e-6)
    assert found["neurons 1/3"] == pytest.approx([cost.probed for cost in costs if cost.neurons], abs=1e-6)
    losses = [item.loss for item in items if item.kind == "block"]
    dense = math.log(minislice.perplexity(model, held_out[4:]))
    gone = [math.log(minislice.perplexity(silenced(model, [number]), held_out[4:])) for number in range(len(losses))]
    assert losses == pytest.approx([loss - dense for loss in gone], abs=1e-6)


@torch.no_grad()
def test_the_gradient_predicts_what_a_small_change_does():
    """On the same sequences, to first order, at every boundary."""
    recipe = Recipe("phi", layers=2)
    bench = rulers.Bench(recipe.model(), recipe.tokens(), recipe.tokens(), probes=1)
    Z, X = bench.embedded
    for boundary, (index, block) in enumerate([*bench.blocks, (None, None)]):
        change = 1e-6 * torch.randn(4, 1, *X[0].shape[1:], generator=torch.Generator().manual_seed(0)).to(X[0])
        said = bench.rulers(boundary, Z, [z + own for z, own in zip(Z, change, strict=True)])["gradient"]
        true = bench.change(boundary, [X[0] + change[:, 0]]).losses.mean().abs().item()
        assert said == pytest.approx(true, rel=0.01, abs=1e-9)
        if block is not None:
            Z, X = bench.calibration.forward(block, index, Z), bench.held_out.forward(block, index, X)


def test_rank_correlations_are_those_of_ranks():
    x = torch.tensor([3.0, -1.0, 20.0, 4.0])
    assert spearman(x, x) == 1 and spearman(x, x**3) == 1 and spearman(x, -x) == -1
    assert spearman(torch.tensor([1, 2, 2, 3]), torch.tensor([1, 2, 3, 4])) == pytest.approx(0.9**0.5)
    assert spearman(torch.ones(4), x).isnan()
