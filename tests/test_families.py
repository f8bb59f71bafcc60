"""Every family of the table, over small random models of transformers' own classes: what holds for OPT and LLaMA."""

import properties
import pytest
import torch
from family_models import FAMILIES, VARIANTS, FamilyRecipe, family_recipes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streaming import check_streaming_equals_memory

from minislice.architecture.families import FAMILIES as TABLE

every_family = pytest.mark.parametrize("family", FAMILIES)
few = settings(max_examples=2)
CASES = [(family, variant) for family in FAMILIES for variant in range(len(VARIANTS[family]))]
every_variant = pytest.mark.parametrize(("family", "variant"), CASES)


def fixed(family: str, variant: int = 0, **fields) -> FamilyRecipe:
    return FamilyRecipe(family, variant=variant, layers=3, heads=4, kv_heads=2, head_dim=4, seed=3, **fields)


def test_every_family_of_the_table_is_tried():
    assert set(FAMILIES) == set(TABLE)


@every_family
@few
@given(data=st.data())
def test_fusing_and_rotating_preserve_the_logits(family, data):
    recipe = data.draw(family_recipes(family))
    properties.fusion_preserves_logits(recipe)
    properties.one_rotation_preserves_logits(recipe)
    properties.rotation_per_block_preserves_logits(recipe)


@every_family
@few
@given(data=st.data())
def test_the_sliced_network_is_the_whole_one_with_its_signal_projected(family, data):
    recipe = data.draw(family_recipes(family))
    properties.slicing_is_projection(
        recipe,
        signal=data.draw(st.sampled_from(["normalized", "raw"])),
        adapter=data.draw(st.sampled_from(["full", "low-rank", "none"])),
        slice_head=data.draw(st.booleans()),
    )


@every_family
@settings(max_examples=2)
@given(data=st.data())
def test_generating_with_a_cache_equals_without(family, data):
    properties.cached_generation_equals_uncached(data.draw(family_recipes(family)))


@every_variant
def test_streaming_and_saving_change_no_bit(family, variant):
    dtype = (torch.float32, torch.bfloat16)[variant % 2]
    options = ({"slicing": 0.25, "multiple": 1}, {"width": 6, "adapter": "none", "slice_head": True})[variant % 2]
    check_streaming_equals_memory(fixed(family, variant, tied=variant % 2 == 0), dtype, True, options)
