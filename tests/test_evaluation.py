"""What is measured of a model: its perplexity, its parameters, how far its signals are from another's."""

import copy
import math
from dataclasses import replace

import properties
import pytest
import torch
from hypothesis import given
from models import Recipe, recipes

import minislice
from minislice import compress, parameters, perplexity
from minislice.measuring import layers
from minislice.measuring.paired import Ratio, WindowLosses, perplexity_ratio, window_losses
from minislice.teaching.small import small_model

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


def test_a_table_of_token_types_is_no_table_of_positions():
    model = small_model("roformer", is_decoder=True)  # 2 types, 64 positions
    assert math.isfinite(perplexity(model, torch.arange(20)[None]))
    with pytest.raises(ValueError, match="the model has 64 positions"):
        perplexity(model, torch.arange(65)[None])


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
    fewer = minislice.slice_model(copy.deepcopy(model), tokens, width=recipe.width - 2, drop=[1])
    errors = layers.signal_errors(model, fewer, tokens)
    assert len(errors) == 3 and errors[1] > few[2]  # the boundary after the dropped block
    rotated = minislice.rotate(copy.deepcopy(model), seed=1)
    assert max(layers.signal_errors(model, rotated, tokens)) < 1e-9
    monkeypatch.setattr(layers, "inner_products", lambda x: x)  # the mistake: the signals themselves are compared
    assert max(layers.signal_errors(model, rotated, tokens)) > 1e-3


SPREAD = 0.05  # of the models' difference; windows differ in difficulty by 1, as it is in practice


def drawn(generator, lengths, documents=None):
    """Random losses of a model and a reference on the same windows; a document's windows share part of the gap."""
    difficulty = 3 + torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    gap = 0.03 + SPREAD * torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    if documents is not None:
        gap += SPREAD * torch.randn(len(lengths), generator=generator, dtype=torch.float64)[documents]
    losses = ((difficulty + gap) * lengths, difficulty * lengths)
    return tuple(WindowLosses(nll, lengths, documents) for nll in losses)


def error_is_the_scatter_of_the_ratio(compare, lengths, documents=None):
    """Over many sets of windows, the mean squared standard error is the variance of the ratio."""
    generator = torch.Generator().manual_seed(0)
    ratios = [compare(*drawn(generator, lengths, documents)) for _ in range(2500)]
    values, errors = torch.tensor([(r.ratio, r.standard_error) for r in ratios], dtype=torch.float64).T
    assert abs(errors.square().mean() / values.var() - 1) < 0.1


def ratio_and_error_are_those_of_windows_of_any_length(compare):
    """The error by leaving each window out in turn (the jackknife), to the order of one window's weight."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 300, (200,), generator=generator)
    losses, reference = drawn(generator, lengths)
    difference = losses.nll - reference.nll
    without = (difference.sum() - difference) / (lengths.sum() - lengths)
    jackknife = ((len(lengths) - 1) * without.var(correction=0)).sqrt()
    ratio = compare(losses, reference)
    assert math.isclose(ratio.ratio, losses.perplexity / reference.perplexity, rel_tol=1e-12)
    assert abs(ratio.standard_error / (ratio.ratio * jackknife) - 1) < 0.02


def unpaired(losses, reference):
    a, b = losses.nll / losses.tokens, reference.nll / reference.tokens
    ratio = perplexity_ratio(losses, reference).ratio
    return Ratio(ratio, ratio * ((a.var() + b.var()) / len(a)).sqrt().item())


def mean_of_ratios(losses, reference):
    right, ratios = perplexity_ratio(losses, reference), losses.perplexities / reference.perplexities
    return replace(right, ratio=ratios.mean().item())


def lengths_overlooked(losses, reference):
    differences = (losses.nll - reference.nll) / losses.tokens
    ratio = perplexity_ratio(losses, reference).ratio
    return Ratio(ratio, ratio * (differences.var() / len(differences)).sqrt().item())


def test_the_error_is_the_scatter_of_the_ratio():
    windows, documents = torch.full((24,), 255), torch.arange(24) // 3
    independent = lambda losses, reference: perplexity_ratio(replace(losses, documents=None), reference)  # noqa: E731
    for text, mistake in (([windows[:6]], unpaired), ([windows, documents], independent)):
        error_is_the_scatter_of_the_ratio(perplexity_ratio, *text)
        with pytest.raises(AssertionError):
            error_is_the_scatter_of_the_ratio(mistake, *text)


def test_windows_may_be_of_any_length():
    ratio_and_error_are_those_of_windows_of_any_length(perplexity_ratio)
    for mistake in (mean_of_ratios, lengths_overlooked):
        with pytest.raises(AssertionError):
            ratio_and_error_are_those_of_windows_of_any_length(mistake)


@given(recipes())
def test_windows_together_have_the_perplexity_of_the_text(recipe):
    model, ids, mask = recipe.model(), recipe.tokens(), recipe.mask()
    losses = window_losses(model, ids, mask)
    assert math.isclose(losses.perplexity, perplexity(model, ids, mask), rel_tol=1e-9)
    assert losses.tokens.tolist() == [length - 1 for length in recipe.lengths()]


def test_a_ratio_says_how_far_it_is_from_a_value():
    assert Ratio(1.06, 0.02).errors_above() == pytest.approx(3)
    assert Ratio(1.1, 0.0).errors_above() == math.inf and Ratio(0.9, 0.0).errors_above() == -math.inf
    assert Ratio(1.0, 0.0).errors_above() == 0


def test_what_can_not_be_paired_is_refused():
    recipe = Recipe("opt")
    losses, two, one = (window_losses(recipe.model(), recipe.tokens()[:windows]) for windows in (4, 2, 1))
    with pytest.raises(ValueError, match="measure both models on the same tokens"):
        perplexity_ratio(losses, two)
    with pytest.raises(ValueError, match="at least two windows and documents, got 1"):
        perplexity_ratio(one, one)
    with pytest.raises(ValueError, match="the documents of 3 windows, but 4 windows"):
        window_losses(recipe.model(), recipe.tokens()[:4], documents=torch.arange(3))
    with pytest.raises(ValueError, match="nothing to predict"):
        window_losses(recipe.model(), recipe.tokens()[:, :1])
