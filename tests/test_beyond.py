"""Beyond the paper: neurons, blocks and layers deleted, W_out solved for again, and one budget for all of them."""

from dataclasses import replace
from unittest.mock import patch

import beyond_properties as properties
import pytest
import torch
from models import CASES, REPRESENTATIVES_FIRST, Recipe, fixed
from streamed import edit_config
from transformers import AutoModelForCausalLM

import minislice
from minislice import compress, delete_layers, delete_neurons, parameters, plan_compression, slice_model
from minislice.architecture.families import FAMILIES as TABLE
from minislice.architecture.network import inference, network
from minislice.beyond import depth, fisher, reconstruction, rulers
from minislice.beyond.depth import losses_without_each
from minislice.beyond.inner import Walk, refit
from minislice.beyond.neurons import least_harmful, solve_block
from minislice.beyond.rulers import LEAST, Cost, Prices, block_costs, divergence, predictions, prices, split_off
from minislice.calibration import Calibration
from minislice.corpus.batches import Batch, token_batches

LLAMA, PHI = (Recipe(family, layers=3, heads=4, head_dim=4) for family in ("llama", "phi"))
DEEP = Recipe("llama", layers=3, seed=7)


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
def test_reconstruction_keeps_shapes_and_dtype_and_moves_what_is_solved_however_few_the_batches(dtype):
    asked = {"neurons": 0.5, "multiple": 4, "repair": True, "reconstruct": True}
    ids = LLAMA.tokens().repeat(8, 1)[:16]
    mask = torch.ones_like(ids)
    mask[7] = 0  # one of the two sequences that are held out is padding alone
    for given, batch_size in ((ids, mask), 1), ((ids[:2],), 8):
        models = []
        for descend in (lambda *_: (), reconstruction.descend):
            with patch.object(reconstruction, "descend", descend):
                models.append(delete_neurons(LLAMA.model().to(dtype), *given, **asked, batch_size=batch_size))
        shapes = [{name: (p.shape, p.dtype, p.requires_grad) for name, p in m.named_parameters()} for m in models]
        assert shapes[0] == shapes[1] and type(models[1]) is type(LLAMA.model())
        assert 0 < properties.relative_error(*(model(ids).logits for model in models)) < 1
    with pytest.raises(ValueError, match=r"a single calibration sequence, .* give more"):
        delete_neurons(LLAMA.model(), ids[:1], **asked)


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


NUMBERED = {  # the layer's number decides what it computes
    ("gpt2", 1): "divides its attention by the layer's number",
    ("qwen2_moe", 1): "layers differ in shape by their number",
    ("qwen3_moe", 1): "layers differ in shape by their number",
}


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES_FIRST)
def test_a_family_stays_of_its_own_class_or_has_layers_that_know_their_number(family, variant):
    recipe = fixed(family, variant, tied=variant % 2 == 0)
    if (family, variant) in NUMBERED:
        with pytest.raises(ValueError, match=NUMBERED[family, variant]):
            properties.shortened(recipe)
        return
    properties.a_shorter_model_is_saved_by_its_own_class(recipe)
    properties.a_shorter_model_generates_the_same_with_a_cache(recipe)


def test_another_model_with_the_same_config_stays_as_it_is():
    config = DEEP.config()
    model, other = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    delete_layers(delete_neurons(model, DEEP.tokens(), neurons=0.5), DEEP.tokens(), layers=1)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 16)
    assert (other.config.num_hidden_layers, other.config.intermediate_size) == (3, 40)


@pytest.mark.parametrize(("size", "layers"), [(1.0, 3), (0.99, 2), (0.6, 1)])
def test_a_size_is_reached_with_as_few_layers_as_will_do_and_the_model_can_be_sliced(size, layers):
    model, tokens = DEEP.model(), DEEP.tokens()
    dense, each = parameters(model), parameters(network(model).layers[0])
    delete_layers(model, tokens, size=size)
    assert len(network(model).layers) == layers
    assert size * dense - each < parameters(model) <= size * dense
    assert network(slice_model(model, tokens, width=16)).widths == [20, *[16] * (2 * layers - 1), 20]


def test_nothing_is_dropped_out_while_a_model_in_training_mode_is_measured():
    recipe = Recipe("opt")
    model, losses = recipe.model(), []
    model.config.dropout = 0.5
    for is_training in (True, False):
        net = network(model.train(is_training))
        losses.append(losses_without_each(net, token_batches(model, recipe.tokens(), None, 4)))
    assert losses[0] == losses[1]


def test_what_is_known_of_the_order_is_not_measured_again(monkeypatch):
    recipe, measured = replace(DEEP, layers=4), []
    whole = properties.shortened(recipe, layers=3)
    order = whole.deleted_layers
    monkeypatch.setattr(depth, "losses_without_each", lambda *a: measured.append(a) or losses_without_each(*a))
    model = delete_layers(recipe.model(), recipe.tokens(), layers=3, known=order[:2], batch_size=3)
    assert model.deleted_layers == order and len(measured) == 1
    properties.assert_same_logits(model, whole, recipe, 0.0)
    assert delete_layers(recipe.model(), recipe.tokens(), layers=1, known=order).deleted_layers == order[:1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_experts_are_counted_and_measured_alike(family):
    recipe = fixed(family)
    properties.sizes_are_those_of_the_sliced_model(recipe)
    properties.measured_costs_are_those_of_whole_models(recipe)
    tokens = [recipe.tokens(seed) for seed in range(3)]
    plan = plan_compression(recipe.model(), tokens, size=0.7, multiple=1, widths=(1.0,))
    model = compress(recipe.model(), tokens, plan=plan)
    assert parameters(model) == plan.parameters and model.slicing.neurons == plan.options["neurons"]


def test_one_width_that_was_measured_prices_others_in_proportion_and_none_prices_none():
    assert Prices([], {32: 0.0, 24: 0.1}).of_width(16) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"none of a narrower signal; give widths=\(1.0,\), which keeps 32 whole"):
        Prices([], {32: 0.0}).of_width(16)


def test_neurons_that_write_nothing_cost_next_to_nothing():
    for lost, most in (((0.0, 0.0, 0.05, 0.3), 2 * LEAST), ((0.0,) * 4, 1e-3)):
        cost = Cost(dropped=0.1, neurons=24, probed=0.0, emptied=0.1, lost=lost)
        assert LEAST < cost.of(12) < most and cost.of(0) == pytest.approx(0.1)


def test_sequences_measure_the_same_one_by_one_and_only_those_held_out_do():
    recipe = Recipe("opt", head_dim=10, padding="left")
    text = torch.cat([recipe.tokens(seed) for seed in range(3)]), torch.cat([recipe.mask()] * 3)
    sequences = [row[keep.bool()] for row, keep in zip(*text, strict=True)]
    together, alone = (prices(recipe.model(), *given, multiple=1) for given in (text, (sequences,)))
    assert alone.widths == pytest.approx(together.widths)
    for one, other in zip(alone.blocks, together.blocks, strict=True):
        assert (one.dropped, one.probed, *one.lost) == pytest.approx((other.dropped, other.probed, *other.lost))
    model = recipe.model()
    calibration, held_out = split_off(token_batches(model, *text, 8))
    k, given = min(together.widths), ([batch.ids for batch in calibration], [batch.mask for batch in calibration])
    sliced = slice_model(recipe.model(), *given, width=k, adapter="none", repair=True)
    with torch.no_grad():
        dense, changed = ([predictions(m, batch) for batch in held_out] for m in (model, sliced))
    assert together.widths[k] == pytest.approx(divergence(dense, changed))
    assert together.blocks == block_costs(network(model), calibration, held_out, dense)
    whole = plan_compression(model, *text, size=0.9, widths=(1.0,), known=together)
    assert whole.options["width"] == 20  # though widths are rounded to a multiple of 8


def test_prices_take_the_first_tokens_and_those_held_out(monkeypatch):
    model, ids = Recipe("opt").model(), torch.cat([Recipe("opt").tokens(seed) for seed in range(5)])
    expected = prices(model, torch.cat([ids[:8], ids[-4:]]))
    for most in ("TRIAL_TOKENS", "COST_TOKENS"):
        assert prices(model, ids) != expected
        monkeypatch.setattr(rulers, most, 8 * ids.shape[1])
    assert prices(model, ids) == expected


@pytest.mark.parametrize(("count", "measure"), [(5, 4), (100, 6), (999, 8)])
def test_so_many_sequences_measure(count, measure):
    ids = torch.arange(2 * count).view(-1, 2)
    batches = [Batch(part, None, 8 * index) for index, part in enumerate(ids.split(8))]
    calibration, held_out = (torch.cat([batch.ids for batch in part]) for part in split_off(batches))
    assert len(held_out) == measure and torch.equal(torch.cat([calibration, held_out]), ids)
