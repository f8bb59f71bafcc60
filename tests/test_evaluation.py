"""Perplexity, generation, attention backends: a model is used after minislice as before."""

import math

import numpy as np
import properties
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import Recipe, recipes

import minislice
from minislice import compress, parameters, perplexity, slice_model

RECIPE = Recipe("llama")


@given(recipes(paddings=("none", "right")))
def test_perplexity_is_the_exponential_of_transformers_loss(recipe):
    properties.perplexity_is_exp_of_transformers_loss(recipe)


@given(recipes(), st.sampled_from(["full", "low-rank", "none"]), st.sampled_from(["own", "tied"]))
def test_generation_with_the_cache_equals_generation_without(recipe, adapter, head):
    properties.cached_generation_equals_uncached(recipe, adapter=adapter, head=head if recipe.tied else "own")


def test_every_attention_backend_computes_the_same():
    recipe, outputs = Recipe("llama", padding="left"), []
    for backend in ("sdpa", "eager"):
        model = recipe.model().float()  # in float64, transformers' eager attention makes NaNs of padding on the left
        properties.sliced(recipe, model, width=8)
        model.set_attn_implementation(backend)
        assert model.config._attn_implementation == backend
        outputs.append(properties.logits(model, recipe.tokens(), recipe.mask()))
    assert properties.relative_error(*outputs) <= 1e-4
    assert not torch.equal(*outputs)  # another backend did run


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


def test_perplexity_changes_neither_model_nor_tokens():
    recipe = Recipe("opt", padding="left")
    model, ids, mask = recipe.model(), recipe.tokens(), recipe.mask()
    perplexity(model, ids, mask)
    assert torch.equal(ids, recipe.tokens()) and torch.equal(mask, recipe.mask())
    properties.assert_same_logits(model, recipe.model(), recipe, 0.0)


@pytest.mark.filterwarnings("ignore:the .* calibration tokens are too few or too much alike")  # babyllama's are
def test_deleting_columns_of_small_norm_is_worse_than_principal_components(assets):
    """Section 4: it sends perplexity far up."""
    oracle, result = assets / "oracle" / "babyllama-tok361", {}
    calibration, evaluation = (
        torch.from_numpy(np.load(oracle / f"{name}.npy")).long()[:16] for name in ("calibration", "evaluation")
    )
    for basis in ("pca", "column-norm", "random"):
        model, _ = minislice.load(assets / "models" / "babyllama-tok361", dtype="float32")
        result[basis] = perplexity(slice_model(model, calibration, width=96, basis=basis), evaluation)
    assert min(result["column-norm"], result["random"]) > 2 * result["pca"]
