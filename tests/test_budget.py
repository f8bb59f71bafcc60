"""Beyond the paper: one budget for the signal's width, the neurons and the blocks."""

import beyond_properties as properties
import pytest
import torch
from models import Recipe, fixed

from minislice import compress, parameters, plan_compression, slice_model
from minislice.architecture.network import network
from minislice.beyond import budget
from minislice.beyond.budget import Prices, prices, split_off
from minislice.beyond.predictions import predictions
from minislice.beyond.rulers import LEAST, Cost, block_costs, divergence
from minislice.corpus.batches import Batch, token_batches


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
        monkeypatch.setattr(budget, most, 8 * ids.shape[1])
    assert prices(model, ids) == expected


@pytest.mark.parametrize(("count", "measure"), [(5, 4), (100, 6), (999, 8)])
def test_so_many_sequences_measure(count, measure):
    ids = torch.arange(2 * count).view(-1, 2)
    batches = [Batch(part, None, 8 * index) for index, part in enumerate(ids.split(8))]
    calibration, held_out = (torch.cat([batch.ids for batch in part]) for part in split_off(batches))
    assert len(held_out) == measure and torch.equal(torch.cat([calibration, held_out]), ids)
