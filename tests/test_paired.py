"""A ratio of perplexities is that of `perplexity`; its standard error is how far the ratio scatters."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from models import Recipe, recipes

from minislice import perplexity
from minislice.measuring.paired import Ratio, WindowLosses, perplexity_ratio, window_losses

SPREAD = 0.05  # of the models' difference; windows differ in difficulty by 1, as it is in practice


def drawn(generator, lengths, documents=None):
    """The losses of two models on random windows, model and reference; windows of one document share some of it."""
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
    assert str(Ratio(1.06, 0.02)) == "1.0600 ± 0.0200"


def test_a_perplexity_that_is_too_large_for_a_float_is_infinite():
    assert WindowLosses(torch.tensor([8000.0]).double(), torch.tensor([10])).perplexity == math.inf


def test_what_can_not_be_paired_is_refused():
    recipe = Recipe("opt")
    losses, two, one = (window_losses(recipe.model(), recipe.tokens()[:windows]) for windows in (4, 2, 1))
    with pytest.raises(ValueError, match="measure both models on the same tokens"):
        perplexity_ratio(losses, two)
    with pytest.raises(ValueError, match="at least two windows and documents, got 1"):
        perplexity_ratio(one, one)
    with pytest.raises(ValueError, match="nothing to predict"):
        window_losses(recipe.model(), recipe.tokens()[:, :1])
