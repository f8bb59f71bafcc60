"""Beyond the paper: neurons deleted and W_out solved for again, over random models of all families."""

import json
from dataclasses import replace

import inner_properties as properties
import pytest
import torch
from family_models import REPRESENTATIVES, FamilyRecipe
from models import FAMILIES, Recipe
from test_families import CASES, fixed
from transformers import AutoModelForCausalLM

import minislice
from minislice import delete_neurons, parameters, perplexity, slice_model
from minislice.architecture.families import FAMILIES as TABLE
from minislice.architecture.network import inference, network
from minislice.beyond.inner import refit
from minislice.beyond.neurons import least_harmful, solve_block
from minislice.calibration import Calibration
from minislice.corpus.batches import token_batches

# Mixtures of experts in every layer.
MIXTURES = [
    *[("mixtral", 0), ("mixtral", 1), ("qwen2_moe", 0), ("qwen3_moe", 0)],
    *[("gpt_oss", 0), ("gpt_oss", 1)],
]
RMSNORMS = [case for case in CASES if not TABLE[case[0]].norm.subtracts_mean]
NEURONS_IN_CONFIG = [case for case in CASES if TABLE[case[0]].inner_width]
REPAIRED = {"slicing": 0, "repair": True, "adapter": "full"}
every_variant = pytest.mark.parametrize(
    ("family", "variant"),
    [pytest.param(*case, marks=() if case in REPRESENTATIVES else pytest.mark.slow) for case in CASES],
)


def small(family: str, variant: int) -> FamilyRecipe:
    return replace(fixed(family, variant), layers=2)


@every_variant
def test_neurons_without_weight_can_go_in_every_family(family, variant):
    properties.idle_neurons_can_go(small(family, variant), **REPAIRED)
    if (family, variant) in NEURONS_IN_CONFIG and (family, variant) not in RMSNORMS:  # which are tried below
        properties.idle_neurons_can_go(small(family, variant), repair=True)


@every_variant
def test_repair_brings_the_signal_nearer_in_every_family(family, variant):
    properties.repair_brings_the_signal_nearer(small(family, variant), place=-1)
    properties.repair_brings_the_signal_nearer(small(family, variant), place=0)


@every_variant
def test_a_block_that_is_dropped_adds_nothing_in_every_family(family, variant):
    properties.dropped_block_adds_nothing(fixed(family, variant))


@pytest.mark.parametrize(("family", "variant"), RMSNORMS)
def test_neurons_are_chosen_and_repaired_alike_before_fusion(family, variant):
    properties.fusing_first_changes_nothing(small(family, variant), repair=True)


@pytest.mark.parametrize(("family", "variant"), NEURONS_IN_CONFIG)
def test_a_model_with_fewer_neurons_is_one_of_its_own_class(family, variant, tmp_path):
    recipe = small(family, variant)
    model, dense = recipe.model().float(), recipe.model()
    delete_neurons(model, recipe.tokens(), neurons=0.3, multiple=4)
    for block, trained in properties.mlps(model, dense):
        assert block.neurons == int(0.7 * trained.neurons + 1e-6) // 4 * 4
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(dense) and parameters(again) == parameters(model) < parameters(dense)
    properties.assert_same_logits(again, model, recipe, 1e-6)  # a loaded mixture multiplies in another order


@pytest.mark.parametrize(("family", "variant"), [case for case in CASES if case not in NEURONS_IN_CONFIG])
def test_a_model_that_could_not_be_saved_with_fewer_neurons_keeps_them(family, variant):
    recipe = small(family, variant)
    model = recipe.model()
    with pytest.raises(ValueError, match=f"config of '{family}' can't say"):
        delete_neurons(model, recipe.tokens())
    properties.assert_same_logits(model, recipe.model(), recipe, 0.0)


def test_no_singular_matrix_stops_a_solve():
    zero, W = torch.zeros(6, 6).double(), torch.randn(6, 3).double()
    assert torch.equal(refit(zero, torch.zeros(6, 3).double()), torch.zeros(6, 3).double())
    kept, solved = least_harmful(zero, W, 4, slice(0, 6))
    assert len(kept) == 2 and torch.isfinite(solved).all()
    one = torch.ones(6, 6).double()
    assert torch.isfinite(refit(one, one[:, :3])).all()


class Told(Calibration):
    """Another process has found that nothing is to be written."""

    def agreed(self, kept, W):
        return kept, torch.zeros_like(W)


def test_all_processes_go_on_with_one_solution():
    net = network(Recipe("phi").model())
    held, block = Told(token_batches(net.model, Recipe("phi").tokens(), None, 2)), net.layers[0].blocks[-1]
    with inference(net.model):
        solve_block(held, block, 0, held.embed(net), None, None, delete=16)
    assert block.neurons == 24 and not any(linear.weight.any() for linear in block.w_out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"neurons": [16, 8]}, {"neurons": 0.5, "repair": True, "width": 10}])
def test_a_sliced_model_with_fewer_neurons_is_saved_and_loaded(family, options, tmp_path):
    recipe = Recipe(family, heads=4, head_dim=4)
    model = slice_model(recipe.model().float(), recipe.tokens(), recipe.mask(), slicing=None, **options)
    minislice.save(model, tmp_path / "sliced")
    again = minislice.load(tmp_path / "sliced")[0]
    assert [block.neurons for block in network(again).blocks if block.neurons] == model.slicing.neurons
    assert perplexity(again, recipe.tokens()) == perplexity(model, recipe.tokens())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 1.0}, "neurons must be a fraction, 0 <= neurons < 1, .* got 1.0"),
        ({"neurons": [8]}, r"got 1 numbers of neurons; this model has 2 MLPs"),
        ({"neurons": [8, 41]}, "can't leave 41 neurons of 40"),
        ({"neurons": -0.1}, "neurons must be a fraction"),
    ],
)
def test_numbers_of_neurons_that_do_not_fit_are_refused_before_any_work(options, message):
    recipe = Recipe("llama")
    model = recipe.model()
    with pytest.raises(ValueError, match=message):
        slice_model(model, recipe.tokens(), **options)
    assert not network(model).is_fused


@pytest.mark.parametrize(("family", "drop"), [("opt", [2, 5]), ("llama", [2, 3]), ("phi", [1])])
def test_a_model_without_some_blocks_is_saved_loaded_and_generates_with_a_cache(family, drop, tmp_path):
    recipe = Recipe(family, layers=3)
    model = slice_model(recipe.model().float(), recipe.tokens(), width=10, drop=drop, repair=True)
    minislice.save(model, tmp_path / "sliced")
    again = minislice.load(tmp_path / "sliced")[0]
    assert perplexity(again, recipe.tokens()) == perplexity(model, recipe.tokens())
    settings = {"max_new_tokens": 8, "do_sample": False}
    for kept in (model, again):
        ids = recipe.tokens()[:1, :5]
        assert torch.equal(kept.generate(ids, **settings), kept.generate(ids, use_cache=False, **settings))


def test_the_attention_that_a_cache_is_measured_by_stays():
    recipe = Recipe("llama")
    with pytest.raises(ValueError, match="block 0 can't be dropped: it has the attention"):
        slice_model(recipe.model(), recipe.tokens(), drop=[0])
    with pytest.raises(ValueError, match="there is no block 4 to drop; this model's are 0 to 3"):
        slice_model(recipe.model(), recipe.tokens(), drop=[4])


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_experts_are_not_repaired(family):
    recipe = FamilyRecipe(family, layers=2, heads=4, head_dim=4, hidden=20)
    full = slice_model(recipe.model(), recipe.tokens(), slicing=0, repair=True)
    properties.assert_same_logits(full, recipe.model(), recipe, 1e-5)


@pytest.mark.parametrize(("family", "variant"), MIXTURES)
def test_each_experts_moments_are_those_of_its_tokens(family, variant):
    properties.experts_moments_are_weighted_sums(replace(small(family, variant), padding="left"))


@pytest.mark.parametrize(("family", "variant"), MIXTURES)
def test_each_expert_loses_what_it_needs_least(family, variant):
    properties.experts_keep_what_is_best_for_each(small(family, variant))


@pytest.mark.parametrize(("family", "variant"), [*MIXTURES, ("qwen2_moe", 1), ("qwen3_moe", 1)])
def test_a_sliced_mixture_with_fewer_neurons_is_saved_and_loaded(family, variant, tmp_path):
    recipe = small(family, variant)
    model = slice_model(recipe.model().float(), recipe.tokens(), slicing=0.25, multiple=2, neurons=0.5, repair=True)
    trained = [block.neurons for block in network(recipe.model()).blocks if block.neurons]
    assert model.slicing.neurons == [count // 4 * 2 for count in trained]
    minislice.save(model, tmp_path / "sliced")
    again = minislice.load(tmp_path / "sliced")[0]
    assert [block.neurons for block in network(again).blocks if block.neurons] == model.slicing.neurons
    properties.assert_same_logits(again, model, recipe, 1e-6)


def test_a_mixture_that_was_saved_when_experts_kept_their_neurons_is_loaded(tmp_path):
    recipe = small("qwen2_moe", 1)
    model = slice_model(recipe.model().float(), recipe.tokens(), slicing=0.25, multiple=2)
    minislice.save(model, tmp_path / "sliced")
    config = tmp_path / "sliced" / "config.json"
    text = config.read_text()
    [mixed, alone] = model.slicing.neurons
    listed = json.dumps([mixed, alone], indent=2).replace("\n", "\n  ")
    assert text.count(listed) == 1
    config.write_text(text.replace(listed, json.dumps([mixed])))
    properties.assert_same_logits(minislice.load(tmp_path / "sliced")[0], model, recipe, 1e-6)


def test_neurons_can_be_deleted_from_a_trained_model_only():
    recipe = Recipe("opt")
    with pytest.raises(ValueError, match="this model is fused"):
        delete_neurons(minislice.fuse(recipe.model()), recipe.tokens())
    with pytest.raises(ValueError, match="leaves less than one multiple of 8"):
        delete_neurons(recipe.model(), recipe.tokens(), neurons=0.9)
