"""Beyond the paper: one budget for the signal's width, the neurons and the blocks."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from models import FAMILIES, Recipe

import minislice
from minislice import compress, parameters, perplexity, plan_compression, slice_model
from minislice.architecture.network import network
from minislice.corpus.batches import token_batches
from minislice.measuring.allocation import Choice, Part, Sizes, cheapest
from minislice.measuring.budget import Prices, prices
from minislice.measuring.rulers import Cost, block_costs

MLP = Cost(dropped=0.5, neurons=24, probed=0.04, emptied=0.6, lost=(0.1, 0.3, 0.7, 1.5, 3.0, 6.0))


def test_the_cost_of_neurons_passes_through_what_was_measured_and_rises_with_each():
    assert MLP.of(24) == 0 and MLP.of(0) == pytest.approx(0.6) and MLP.of(16) == pytest.approx(0.04)
    costs = [MLP.of(left) for left in range(24, -1, -1)]
    assert costs == sorted(costs)


def test_the_cost_of_a_width_passes_through_what_was_measured():
    trials = {96: 0.0, 86: 0.1, 72: 0.5}
    cost = Prices([], trials).of_width
    assert [cost(k) for k in trials] == [0.0, 0.1, 0.5]
    assert 0 < cost(90) < 0.1 < cost(80) < 0.5 < cost(60)


def test_one_width_that_was_measured_prices_others_in_proportion_and_none_prices_none():
    assert Prices([], {32: 0.0, 24: 0.1}).of_width(16) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"none of a narrower signal; give widths=\(1.0,\), which keeps 32 whole"):
        Prices([], {32: 0.0}).of_width(16)


FOUR = Sizes(total=4500, blocks=[1000] * 4, per_neuron=[40] * 4)


def best_of_all(costs: list[Cost], sizes: Sizes, target: float) -> float:
    """The least sum of costs of all choices, tried one by one."""
    options = [(None, *range(0, 25, 8))] * len(costs)
    found = math.inf
    for left in itertools.product(*options):
        size = 500 + sum(0 if count is None else 1000 - 40 * (24 - count) for count in left)
        cost = sum(max(c.dropped, 1e-4) if n is None else c.of(n) for c, n in zip(costs, left, strict=True))
        found = min(found, cost) if size <= target else found
    return found


def test_the_chosen_mixture_is_nearly_the_cheapest_of_all():
    """Of 40 budgets, each with 1 to 5 blocks' worth of 256 mixtures to choose from."""
    generator, excesses = torch.Generator().manual_seed(0), []
    for share in torch.linspace(0.35, 0.95, 40).tolist():
        scales = (torch.rand(4, 2, generator=generator) + 0.02).tolist()
        costs = [replace(MLP, dropped=5 * a * b, probed=0.1 * a, emptied=a) for a, b in scales]
        chosen = cheapest(FOUR, costs, share * FOUR.total, 500, 8, may_drop=range(4))
        left = [0 if part.dropped else 1000 - 40 * (24 - part.neurons) for part in chosen.parts]
        assert share * FOUR.total - 500 < 500 + sum(left) <= share * FOUR.total
        excesses.append(chosen.cost / best_of_all(costs, FOUR, share * FOUR.total))
    assert max(excesses) < 2 and sum(excesses) / len(excesses) < 1.1, excesses


def test_what_is_needed_is_never_left_out():
    worthless = [Cost(dropped=0.0)] * 3
    sizes = Sizes(total=3500, blocks=[1000] * 3, per_neuron=[0] * 3)
    assert cheapest(sizes, worthless, 1600, 200, 8, may_drop={1, 2}).dropped == [1, 2]
    assert cheapest(sizes, worthless, 1600, 200, 8, may_drop=()) is None
    assert cheapest(sizes, worthless, 600, 200, 8, may_drop={1, 2}) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_measured_costs_are_those_of_models_without_the_blocks(family):
    recipe = Recipe(family, layers=2)
    model = recipe.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibration, held_out = (token_batches(model, recipe.tokens(seed), None, 4) for seed in (0, 1))
    costs = block_costs(network(model), calibration, held_out)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    dense = math.log(perplexity(model, recipe.tokens(1)))
    last = len(costs) - 1
    sliced = slice_model(copy.deepcopy(model), recipe.tokens(), slicing=0, drop=[last], head="own")
    cost = math.log(perplexity(sliced, recipe.tokens(1))) - dense
    assert costs[last].dropped == pytest.approx(cost, abs=1e-5)
    assert [cost.neurons for cost in costs] == [block.neurons for block in network(model).blocks]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"widths": (1.0,)}, {"widths": (0.75,), "drop": False}])
def test_a_plan_says_the_size_that_compress_reaches(family, options):
    recipe = Recipe(family, layers=3, heads=4)
    model = recipe.model().float()
    tokens = [recipe.tokens(seed) for seed in range(3)]
    plan = plan_compression(model, tokens, size=0.8, multiple=1, batch_size=4, **options)
    assert plan.parameters == pytest.approx(0.8 * parameters(recipe.model()), rel=0.0125)
    compress(model, tokens, plan=plan)
    assert parameters(model) == plan.parameters
    assert all(str(part) in str(plan) for part in plan.options["neurons"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_signal_keeps_the_block_that_leads_to_the_heads_width(family):
    """However worthless it is: another block in its place would have as many columns, and the size would be missed."""
    recipe = Recipe(family, layers=3, heads=4)
    model, tokens = recipe.model().float(), [recipe.tokens(seed) for seed in range(3)]
    known = prices(model, tokens, multiple=1)
    known.blocks[-1] = replace(known.blocks[-1], dropped=0.0)
    plan = plan_compression(model, tokens, size=0.6, widths=(0.8, 0.6), multiple=1, known=known)
    assert plan.options["width"] < recipe.width and len(known.blocks) - 1 not in plan.options["drop"]
    dense = parameters(model)
    assert parameters(compress(model, tokens, plan=plan)) == plan.parameters <= 0.6 * dense


def test_a_size_that_cannot_be_reached_is_refused():
    recipe = Recipe("llama")
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.2"):
        plan_compression(recipe.model(), recipe.tokens(), size=1.2)
    with pytest.raises(ValueError, match="nothing that can be deleted leaves 1% of this model's"):
        plan_compression(recipe.model(), [recipe.tokens()] * 2, size=0.01, widths=(1.0,))
    with pytest.raises(ValueError, match="give more, the last ones measure losses"):
        plan_compression(recipe.model(), recipe.tokens()[:2])
    with pytest.raises(ValueError, match="fused already"):
        plan_compression(minislice.fuse(recipe.model()), recipe.tokens())


def test_a_choice_lists_the_neurons_of_the_mlps_that_are_left():
    attention, gone = Part(None, 0.0, 100), Part(None, 0.1, 0, dropped=True)
    choice = Choice([attention, Part(8, 0.2, 60), gone, gone, attention, Part(0, 0.4, 20)])
    assert choice.neurons == [8, 0] and choice.dropped == [2, 3]
    assert choice.size == 280 and choice.cost == pytest.approx(0.8)
