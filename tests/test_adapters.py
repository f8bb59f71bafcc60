"""Residual adapters in their three forms, over random models of all families."""

import adapter_properties as properties
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from models import FAMILIES, Recipe, recipes
from properties import sliced

from minislice.adapters import align, make_adapter
from minislice.architecture.blocks import LowRankAdapter


@st.composite
def recipes_and_widths(draw):
    recipe = draw(recipes())
    return recipe, draw(st.integers(1, recipe.width))


@given(recipes_and_widths())
def test_adapter_has_at_least_2k_minus_D_unit_singular_values(case):
    recipe, k = case
    assume(2 * k > recipe.width)
    properties.adapter_has_unit_singular_values(recipe, k)


@given(recipes_and_widths(), st.integers(0, 31))
def test_alignment_makes_the_adapter_symmetric_positive_semidefinite(case, more):
    recipe, k = case
    properties.alignment_makes_the_adapter_symmetric(recipe, k, min(recipe.width, k + more))


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(
    "cosines", [[0.5], [1e-3], [1e-5], [1e-7], [0.0], [0.0, 0.0], [0.0, 0.3, 1e-4], [1 - 1e-9], [1.0]], ids=str
)
def test_alignment_is_exact_at_every_angle(cosines, more):
    """Right angles leave the aligned basis undetermined, and angles near them nearly so."""
    recipe = Recipe("llama", hidden=12)
    properties.alignment_makes_the_adapter_symmetric(recipe, 8, 8 + more, cosines)


@given(recipes_and_widths())
def test_exact_low_rank_equals_full(case):
    recipe, k = case
    properties.exact_low_rank_equals_full(recipe, k)


@given(recipes_and_widths())
def test_rank_is_at_most_what_was_deleted(case):
    recipe, k = case
    properties.rank_is_at_most_what_was_deleted(recipe, k)


@given(recipes_and_widths(), st.booleans())
def test_none_equals_low_rank_with_every_direction_dropped(case, slice_head):
    recipe, k = case
    properties.none_equals_every_direction_dropped(recipe, k, slice_head)


@given(recipes_and_widths(), st.sampled_from(["full", "low-rank", "none"]), st.booleans())
def test_parameter_counts_follow_the_formulas(case, adapter, slice_head):
    recipe, k = case
    properties.parameter_counts_follow_the_formulas(recipe, k, adapter, slice_head)


@pytest.mark.parametrize("family", FAMILIES)
def test_none_leaves_no_adapter_where_the_width_stays(family):
    assert properties.adapters(sliced(Recipe(family), width=6, slice_head=True, adapter="none")).count(None) >= 2


def test_low_rank_adapter_is_the_truncated_aligned_matrix():
    P, Q_next = properties.random_bases(Recipe("llama"), 12)
    _, U, deficits = align(P, Q_next, 12)
    kept = torch.where(deficits > 0.3, deficits, 0.0)
    P_next, adapter = make_adapter(P, Q_next, 12, "low-rank", 0.3, like=P)
    assert 0 < adapter.rank == kept.count_nonzero() < len(deficits)
    identity = torch.eye(12, dtype=P.dtype)
    assert properties.relative_error(adapter(identity).detach(), identity - U @ kept.diag() @ U.T) <= properties.EXACT
    assert properties.relative_error(P_next, align(P, Q_next, 12)[0]) == 0


def test_growing_width_appends_zeros():
    P, Q_next = properties.random_bases(Recipe("llama"), 12)
    _, adapter = make_adapter(P, Q_next, 15, "none", 0.0, like=P)
    x = torch.randn(2, 3, 12).double()
    assert isinstance(adapter, LowRankAdapter) and adapter.rank == 0
    assert torch.equal(adapter(x), torch.cat([x, torch.zeros(2, 3, 3)], dim=-1))


def test_shrinking_width_keeps_the_low_rank_adapter_whole():
    P, Q_next = properties.random_bases(Recipe("llama"), 15)
    P_next, adapter = make_adapter(P, Q_next, 12, "low-rank", 0.0, like=P)
    assert torch.equal(P_next, Q_next[:, :12])
    assert torch.equal(adapter.weight, (P.T @ P_next).T)


def test_shrinking_width_cannot_be_aligned():
    P, Q_next = properties.random_bases(Recipe("llama"), 15)
    with pytest.raises(ValueError, match=r"12 columns with one of 15"):
        align(P, Q_next, 12)
    with pytest.raises(ValueError, match=r"12 columns with one of 15"):
        make_adapter(P, Q_next, 12, "none", 0.0, like=P)
