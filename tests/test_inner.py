"""Beyond the paper: neurons deleted and W_out solved for again, over random models of all families."""

import beyond_properties as properties
import pytest
import torch
from models import CASES, REPRESENTATIVES_FIRST, Recipe, fixed
from streamed import edit_config
from transformers import AutoModelForCausalLM

import minislice
from minislice import delete_neurons, parameters, slice_model
from minislice.architecture.families import FAMILIES as TABLE
from minislice.architecture.network import inference, network
from minislice.beyond import fisher
from minislice.beyond.inner import refit
from minislice.beyond.neurons import least_harmful, solve_block
from minislice.beyond.walk import Walk
from minislice.calibration import Calibration
from minislice.corpus.batches import token_batches

LLAMA, PHI = (Recipe(family, layers=3, heads=4, head_dim=4) for family in ("llama", "phi"))


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES_FIRST)
def test_idle_neurons_and_dropped_blocks_can_go_and_repair_helps_in_every_family(family, variant):
    recipe = fixed(family, variant, layers=2)
    properties.idle_neurons_can_go(recipe, slicing=0, repair=True, adapter="full")
    properties.idle_neurons_can_go(recipe, slicing=0, repair=True, fisher=True)
    properties.nothing_lost_is_nothing_repaired(recipe, reconstruct=True, batch_size=1)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconstruction_keeps_shapes_and_dtype_and_moves_nothing_where_nothing_is_held_out(dtype):
    asked = {"neurons": 0.5, "multiple": 4, "repair": True, "batch_size": 1}
    for ids in (LLAMA.tokens(), LLAMA.tokens()[:1]):
        models = [delete_neurons(LLAMA.model().to(dtype), ids, reconstruct=r, **asked) for r in (False, True)]
        shapes = [{name: (p.shape, p.dtype, p.requires_grad) for name, p in m.named_parameters()} for m in models]
        assert shapes[0] == shapes[1] and type(models[1]) is type(LLAMA.model())
        error = properties.relative_error(*(model(ids).logits for model in models))
        assert 0 < error < 1 if len(ids) > 1 else error == 0


def test_a_block_keeps_its_number_when_others_are_dropped():
    model = slice_model(LLAMA.model(), LLAMA.tokens(), slicing=0, head="own", drop=[1])
    with pytest.raises(ValueError, match=r"no block 1 to drop; this model's are 0 to 5 without \[1\]"):
        slice_model(model, LLAMA.tokens(), slicing=0, head="own", drop=[1])
    assert network(slice_model(model, LLAMA.tokens(), slicing=0.25, head="own", drop=[2])).dropped == [1, 2]


def test_every_eighth_batch_is_held_out(unchecked):
    for count, held_out in ((1, []), (2, [1]), (7, [6]), (17, [7, 15])):
        learned, others = Walk(None, None, chosen=range(count)).split(8)
        assert [*others.numbers] == held_out and sorted([*learned.numbers, *held_out]) == [*range(count)]


def test_batches_and_processes_make_no_difference_to_fisher_and_the_first_sequences_suffice(monkeypatch):
    recipe = Recipe("llama", padding="left")
    model, ids, mask = recipe.model(), recipe.tokens(), recipe.mask()
    whole, shared = properties.information(model, ids, mask), properties.information(model, ids, mask, 1, processes=3)
    assert all(properties.relative_error(*pair) <= 1e-12 for pair in zip(whole, shared, strict=True))
    monkeypatch.setattr(fisher, "SEQUENCES", 2)
    assert torch.equal(*(properties.information(model, ids[:n], mask[:n])[0] for n in (2, 4)))


@pytest.mark.parametrize(("dtype", "frozen"), [(torch.float64, False), (torch.bfloat16, True)])
def test_where_no_neuron_goes_by_fisher_the_model_stays_as_it_is(dtype, frozen):
    model = LLAMA.model().to(dtype).requires_grad_(not frozen).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    delete_neurons(model, LLAMA.tokens(), neurons=0.0, fisher=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and parameter.requires_grad != frozen
    assert model.training


def test_repair_makes_up_for_a_dropped_block():
    ids, expected = LLAMA.tokens(), LLAMA.model()(LLAMA.tokens()).logits
    models = [slice_model(LLAMA.model(), ids, slicing=0, drop=[2], repair=repair) for repair in (False, True)]
    far, near = (properties.relative_error(model(ids).logits, expected) for model in models)
    assert near < 0.9 * far


def test_no_singular_matrix_stops_a_solve():
    zero, W = torch.zeros(6, 6).double(), torch.randn(6, 3).double()
    assert torch.equal(refit(zero, torch.zeros(6, 3).double()), torch.zeros(6, 3).double())
    kept, solved = least_harmful(zero, W, 4, slice(0, 6))
    assert len(kept) == 2 and torch.isfinite(solved).all()
    assert torch.isfinite(refit(torch.ones(6, 6).double(), torch.ones(6, 3).double())).all()


def test_all_processes_go_on_with_one_solution(monkeypatch):
    """Here the one that they agree on writes nothing."""
    monkeypatch.setattr(Calibration, "agreed", lambda self, kept, W: (kept, torch.zeros_like(W)))
    net = network(PHI.model())
    held, block = Calibration(token_batches(net.model, PHI.tokens(), None, 2)), net.layers[0].blocks[-1]
    with inference(net.model):
        solve_block(Walk(held, held.embed(net)), block, delete=16)
    assert block.neurons == 24 and not any(linear.weight.any() for linear in block.w_out)


def test_a_mixture_that_was_saved_when_experts_kept_their_neurons_is_loaded(tmp_path):
    """Its config lists the neurons of the MLPs alone."""
    recipe = fixed("qwen2_moe", 1, layers=2)
    model = slice_model(recipe.model().float(), recipe.tokens(), slicing=0.25, multiple=2)
    minislice.save(model, tmp_path / "sliced")
    edit_config(tmp_path / "sliced", neurons=model.slicing.neurons[:1])
    properties.assert_same_logits(minislice.load(tmp_path / "sliced")[0], model, recipe, 1e-6)


@pytest.mark.parametrize(("family", "variant"), [("mixtral", 1), ("qwen2_moe", 0), ("gpt_oss", 0)])
def test_each_expert_loses_what_its_own_tokens_need_least(family, variant):
    recipe = fixed(family, variant, layers=2, padding="left")
    properties.experts_moments_are_weighted_sums(recipe)
    properties.experts_keep_what_is_best_for_each(recipe)
