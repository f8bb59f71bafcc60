"""Every fact that minislice stands on, over random small models: one line for each, with what is drawn besides.

The facts are functions: the paper's in `properties.py`, the others in `beyond_properties.py`. Every one can fail:
`mistakes.py` has a wrong implementation for it, with which it must.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pkgutil import resolve_name

import beyond_properties as b
import properties as p
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistakes import TABLE, wrong
from models import PAPERS, Recipe, recipes


def a_width(recipe: Recipe) -> st.SearchStrategy:
    return st.integers(1, recipe.width)


def a_width_of_each(recipe: Recipe) -> st.SearchStrategy:
    boundaries = recipe.layers * (1 if recipe.family == "phi" else 2) + 1
    return st.lists(a_width(recipe), min_size=boundaries, max_size=boundaries)


one_of = st.sampled_from
signals, flags = one_of(["normalized", "raw"]), st.booleans()
forms, exact_forms = one_of(["full", "low-rank", "none"]), one_of(["full", "low-rank"])
bases = {"basis": one_of(["pca", "random", "column-norm"]), "orientation": one_of(["pca", "random"]), "adapter": forms}
embedding = {"slice_embedding": one_of([None, False])}
approximate = {"width": a_width, "signal": signals, "slice_head": flags}
low_rank = {"adapter": "low-rank", "tolerance": one_of([0.0, 0.01, 0.3, 1.0])}
tied = recipes().map(lambda recipe: dataclasses.replace(recipe, tied=True))
seeds = st.integers(0, 10**6).map(lambda seed: Recipe("opt", seed=seed))  # for facts that need random numbers alone
three_layers = st.builds(Recipe, one_of(PAPERS), layers=st.just(3), heads=st.just(4), tied=flags)
padded = one_of(PAPERS).map(lambda family: Recipe(family, heads=4, head_dim=4, padding="left", seed=7))


def over(fact: Callable, models: st.SearchStrategy | None = None, examples: int = 8, **options) -> pytest.param:
    """A fact, the models to try it on, and its options: constants, strategies, or functions of the recipe to one."""
    return pytest.param(fact, recipes() if models is None else models, examples, options, id=fact.__name__)


FACTS = [
    over(p.fusion_preserves_logits),
    over(p.rotation_preserves_logits, examples=16, per_block=flags),
    over(p.full_width_preserves_logits, slicing=0, seed=st.integers(0, 99), **bases),
    over(p.slicing_is_projection, width=a_width, signal=signals, adapter=exact_forms, slice_head=flags, **embedding),
    over(p.slicing_is_projection, tied, width=a_width, signal=signals, adapter=exact_forms, head="tied"),
    over(p.slicing_is_projection, width=a_width_of_each, signal=signals, adapter=exact_forms),
    over(p.tied_head_is_exact, tied, slicing=0, adapter=forms),
    over(p.fitted_head_is_least_squares, tied, slice_head=flags, adapter=forms),
    over(p.approximate_adapters_carry_close_directions_whole, **approximate, **low_rank),
    over(p.approximate_adapters_carry_close_directions_whole, **approximate, **embedding),
    over(p.orientation_does_not_matter, width=a_width, adapter=forms),
    over(p.covariance_is_summed_in_float64, dtype=one_of([torch.float64, torch.float32, torch.bfloat16])),
    over(p.variance_adds_up, width=a_width, signal=signals, adapter=forms, orientation=bases["orientation"]),
    over(p.discard_keeps_the_least_that_suffices, discard=st.floats(0.001, 0.9)),
    over(p.padding_is_not_counted, recipes(paddings=("left", "right"))),
    over(p.batches_do_not_matter, recipes(paddings=("none",))),
    over(p.perplexity_is_exp_of_transformers_loss, recipes(paddings=("none", "right"))),
    over(p.cached_generation_equals_uncached, tied, adapter=forms, head=one_of(["own", "tied"])),
    over(p.alignment_makes_the_adapter_symmetric, k=a_width, k_next=None),
    over(p.alignment_makes_the_adapter_symmetric, k=a_width, k_next=lambda recipe: recipe.width),
    over(p.adapters_have_the_parameters_of_the_formulas, width=a_width, adapter=forms, slice_head=flags),
    over(b.nearly_the_best_of_all_subsets_is_kept, seeds),
    over(b.solved_output_is_least_squares, seeds, delete=st.integers(0, 8)),
    over(b.refit_is_least_squares, seeds),
    over(b.moments_are_weighted_sums, seeds),
    over(b.idle_neurons_can_go, repair=flags),
    over(b.idle_neurons_can_go, slicing=0, repair=flags, adapter="full"),
    over(b.dropped_block_adds_nothing, adapter=forms),
    over(b.nothing_lost_is_nothing_repaired, adapter=forms),
    over(b.repair_brings_the_signal_nearer, place=one_of([0, -1])),
    over(b.held_out_error_never_grows, padded, examples=3),
    over(b.what_is_learned_comes_nearer, padded, examples=3),
    over(b.a_sum_of_outer_products, padded, examples=3),
    over(b.twice_the_divergence, padded, examples=3),
    over(b.directions_count_by_the_metric, padded, examples=3),
    over(b.cost_of_neurons_is_a_power_of_the_energy_lost, seeds),
    over(b.cost_of_a_width_is_a_power_of_the_share_deleted, seeds),
    over(b.chosen_mixture_is_nearly_the_cheapest, seeds),
    over(b.divergence_is_what_is_lost_of_the_log_likelihood),
    over(b.measured_costs_are_those_of_whole_models, examples=3),
    over(b.sizes_are_those_of_the_sliced_model, examples=4),
    over(b.plan_says_what_is_left, three_layers, examples=6),
    over(b.a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing, examples=5),
    over(b.each_deleted_layer_hurts_least, three_layers, examples=5),
]


@pytest.mark.parametrize(("fact", "models", "examples", "options"), FACTS)
def test_over_random_models(fact, models, examples, options):
    @settings(max_examples=examples)
    @given(st.data())
    def holds(data):
        recipe, drawn = data.draw(models), {}
        for name, value in options.items():
            value = value(recipe) if callable(value) else value
            drawn[name] = data.draw(value, label=name) if isinstance(value, st.SearchStrategy) else value
        fact(recipe, **drawn)

    holds()


holds = functools.cache(lambda fact, recipe, options: fact(recipe, **dict(options)))
CASES = [
    pytest.param(fact, recipe, target, version, dict(*options), id=f"{fact.__name__}: {name}")
    for fact, mistakes in TABLE.items()
    for name, recipe, target, version, *options in mistakes
]


@pytest.mark.parametrize(("fact", "recipe", "target", "version", "options"), CASES)
def test_property_fails_with(fact, recipe, target, version, options, monkeypatch):
    holds(fact, recipe, tuple(options.items()))
    target = target if target.split(".")[0].endswith("properties") else f"minislice.{target}"
    monkeypatch.setattr(target, wrong(version)(resolve_name(target)))
    with pytest.raises(AssertionError):
        fact(recipe, **options)


def test_every_property_has_a_mistake_on_which_it_fails():
    facts = {param.values[0] for param in FACTS}
    for module in (p, b):
        for _, function in inspect.getmembers(module, inspect.isfunction):
            parameters, result = inspect.signature(function).parameters, inspect.signature(function).return_annotation
            if function.__module__ == module.__name__ and next(iter(parameters)) == "recipe" and result is None:
                facts.add(function)
    assert facts == TABLE.keys()
