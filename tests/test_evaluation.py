"""What is measured of a model: its perplexity, its parameters, how far its signals are from another's."""

import copy
import math

import properties
import pytest
import torch
from models import Recipe

import minislice
from minislice import compress, parameters, perplexity
from minislice.measuring import layers

RECIPE = Recipe("llama")


def test_perplexity_of_a_uniform_model_is_the_vocabulary_and_a_shared_matrix_counts_once():
    tied, model = (Recipe("opt", tied=tied).model() for tied in (True, False))
    assert parameters(model) - parameters(tied) == tied.lm_head.weight.numel()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert math.isclose(perplexity(model, Recipe("opt").tokens()), model.config.vocab_size, rel_tol=1e-12)


@pytest.mark.parametrize(("scale", "expected"), [(1e3, math.inf), (math.nan, math.nan)])
def test_perplexity_beyond_a_float_is_infinite_and_of_no_numbers_it_is_none(scale, expected):
    model = Recipe("llama", tied=False).model()
    model.lm_head.weight.data *= scale
    assert perplexity(model, RECIPE.tokens()) == pytest.approx(expected, nan_ok=True)


def test_batches_of_a_generator_are_kept_where_they_are_read_again():
    batches, sizes = [RECIPE.tokens(), RECIPE.tokens(2)], {"size": 0.8, "multiple": 1}
    used_up = iter(batches)
    one, other = (compress(RECIPE.model(), tokens, **sizes) for tokens in (used_up, batches))
    properties.assert_same_logits(one, other, RECIPE, 0.0)
    with pytest.raises(ValueError, match="an iterable of them that can be read again"):
        perplexity(RECIPE.model(), used_up)


def test_rotations_are_not_seen_and_slicing_is_at_every_boundary_more_of_it_more(monkeypatch):
    recipe = Recipe("phi", layers=3)
    model, tokens = minislice.fuse(recipe.model()), recipe.tokens()
    few, many = (
        layers.signal_errors(model, minislice.slice_model(copy.deepcopy(model), tokens, width=width), tokens)
        for width in (recipe.width - 2, recipe.width // 2)
    )
    assert len(few) == 4
    assert all(0 < less < more for less, more in zip(few, many, strict=True))
    rotated = minislice.rotate(copy.deepcopy(model), seed=1)
    assert max(layers.signal_errors(model, rotated, tokens)) < 1e-9
    monkeypatch.setattr(layers, "inner_products", lambda x: x)  # the mistake: the signals themselves are compared
    assert max(layers.signal_errors(model, rotated, tokens)) > 1e-3
