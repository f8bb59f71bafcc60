"""Beyond the paper: neurons deleted and W_out solved for again, over random models of all families."""

import json

import inner_properties as properties
import pytest
import torch
from family_models import CASES, REPRESENTATIVES_FIRST, fixed
from models import FAMILIES, Recipe
from transformers import AutoModelForCausalLM

import minislice
from minislice import delete_neurons, parameters, slice_model
from minislice.architecture.families import FAMILIES as TABLE
from minislice.architecture.network import inference, network
from minislice.beyond.inner import refit
from minislice.beyond.neurons import least_harmful, solve_block
from minislice.calibration import Calibration
from minislice.corpus.batches import token_batches


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES_FIRST)
def test_idle_neurons_and_dropped_blocks_can_go_and_repair_helps_in_every_family(family, variant):
    recipe = fixed(family, variant, layers=2)
    properties.idle_neurons_can_go(recipe, slicing=0, repair=True, adapter="full")
    for place in (-1, 0):
        properties.repair_brings_the_signal_nearer(recipe, place=place)
    properties.dropped_block_adds_nothing(fixed(family, variant))
    if TABLE[family].inner_width:
        properties.idle_neurons_can_go(recipe, repair=True)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_a_model_with_fewer_neurons_is_one_of_its_own_class_or_keeps_them(family, variant, tmp_path):
    recipe = fixed(family, variant, layers=2)
    model, dense = recipe.model().float(), recipe.model()
    if not TABLE[family].inner_width:
        with pytest.raises(ValueError, match=f"config of '{family}' can't say"):
            delete_neurons(model, recipe.tokens())
        assert parameters(model) == parameters(dense)
        return
    delete_neurons(model, recipe.tokens(), neurons=0.3, multiple=4)
    for block, trained in properties.mlps(model, dense):
        assert block.neurons == int(0.7 * trained.neurons + 1e-6) // 4 * 4
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(dense) and parameters(again) == parameters(model) < parameters(dense)
    properties.assert_same_logits(again, model, recipe, 1e-6)  # a loaded mixture multiplies in another order


def test_no_singular_matrix_stops_a_solve():
    zero, W = torch.zeros(6, 6).double(), torch.randn(6, 3).double()
    assert torch.equal(refit(zero, torch.zeros(6, 3).double()), torch.zeros(6, 3).double())
    kept, solved = least_harmful(zero, W, 4, slice(0, 6))
    assert len(kept) == 2 and torch.isfinite(solved).all()
    assert torch.isfinite(refit(torch.ones(6, 6).double(), torch.ones(6, 3).double())).all()


def test_all_processes_go_on_with_one_solution(monkeypatch):
    """Another process has found that nothing is to be written."""
    monkeypatch.setattr(Calibration, "agreed", lambda self, kept, W: (kept, torch.zeros_like(W)))
    net = network(Recipe("phi").model())
    held, block = Calibration(token_batches(net.model, Recipe("phi").tokens(), None, 2)), net.layers[0].blocks[-1]
    with inference(net.model):
        solve_block(held, block, 0, held.embed(net), None, None, delete=16)
    assert block.neurons == 24 and not any(linear.weight.any() for linear in block.w_out)


SMALLER = {"opt": ([2, 5], [16, 8]), "llama": ([2, 3], 0.5), "phi": ([1], [40, 8])}  # blocks to drop, neurons


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_fewer_neurons_and_blocks_is_saved_loaded_and_generates_with_a_cache(family, tmp_path):
    recipe, (drop, neurons) = Recipe(family, layers=3, heads=4, head_dim=4), SMALLER[family]
    model = slice_model(recipe.model().float(), recipe.tokens(), width=10, drop=drop, neurons=neurons, repair=True)
    minislice.save(model, tmp_path / "sliced")
    again, ids = minislice.load(tmp_path / "sliced")[0], recipe.tokens()[:1, :5]
    assert [block.neurons for block in network(again).blocks if block.neurons] == model.slicing.neurons
    properties.assert_same_logits(again, model, recipe, 0.0)
    settings = {"max_new_tokens": 8, "do_sample": False}
    for smaller in (model, again):
        assert torch.equal(smaller.generate(ids, **settings), smaller.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 1.0}, "neurons must be a fraction, 0 <= neurons < 1, .* got 1.0"),
        ({"neurons": [8]}, r"got 1 numbers of neurons; this model has 2 MLPs"),
        ({"neurons": [8, 41]}, "can't leave 41 neurons of 40"),
        ({"drop": [0]}, "block 0 can't be dropped: it has the attention"),
        ({"drop": [4]}, "there is no block 4 to drop; this model's are 0 to 3"),
    ],
    ids=str,
)
def test_neurons_and_blocks_that_can_not_go_are_refused_before_any_work(options, message):
    model = Recipe("llama").model()
    with pytest.raises(ValueError, match=message):
        slice_model(model, Recipe("llama").tokens(), **options)
    assert not network(model).is_fused


@pytest.mark.parametrize(("family", "variant"), [("mixtral", 1), ("qwen2_moe", 0), ("gpt_oss", 0)])
def test_each_expert_loses_what_its_own_tokens_need_least_and_is_not_repaired(family, variant):
    recipe = fixed(family, variant, layers=2, padding="left")
    properties.experts_moments_are_weighted_sums(recipe)
    properties.experts_keep_what_is_best_for_each(recipe)
    full = slice_model(recipe.model(), recipe.tokens(), recipe.mask(), slicing=0, repair=True)
    properties.assert_same_logits(full, recipe.model(), recipe, 1e-5)


@pytest.mark.parametrize("as_before", [False, True])
def test_a_sliced_mixture_with_fewer_neurons_is_saved_and_loaded(as_before, tmp_path):
    """Also one that was saved when experts kept their neurons, and the config told only the MLPs'."""
    recipe, neurons = fixed("qwen2_moe", 1, layers=2), 0.0 if as_before else 0.5
    model = slice_model(recipe.model().float(), recipe.tokens(), slicing=0.25, multiple=2, neurons=neurons, repair=True)
    trained = [block.neurons for block in network(recipe.model()).blocks if block.neurons]
    assert model.slicing.neurons == (trained if as_before else [count // 4 * 2 for count in trained])
    minislice.save(model, tmp_path / "sliced")
    if as_before:
        file = tmp_path / "sliced" / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "neurons": config["neurons"][:1]}))
    again = minislice.load(tmp_path / "sliced")[0]
    assert [block.neurons for block in network(again).blocks if block.neurons] == model.slicing.neurons
    properties.assert_same_logits(again, model, recipe, 1e-6)


def test_neurons_can_be_deleted_from_a_trained_model_only_and_not_all():
    recipe = Recipe("opt")
    with pytest.raises(ValueError, match="this model is fused"):
        delete_neurons(minislice.fuse(recipe.model()), recipe.tokens())
    with pytest.raises(ValueError, match="leaves less than one multiple of 8"):
        delete_neurons(recipe.model(), recipe.tokens(), neurons=0.9)
