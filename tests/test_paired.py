"""A ratio of perplexities is that of `perplexity`; its standard error is how far the ratio scatters.

Each property is also run against the mistakes that one makes here, and must fail there.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from models import Recipe, recipes

from minislice import fuse, perplexity
from minislice.measuring.paired import Ratio, WindowLosses, perplexity_ratio, window_losses

# Windows that differ in difficulty (standard deviation 1), models that differ by less (0.05): as it is in practice.
WINDOWS, DIFFICULTY, SPREAD, GAP = 6, 1.0, 0.05, 0.03


def drawn(generator, lengths):
    """The losses of two models on windows drawn at random: model, reference."""
    difficulty = 3 + DIFFICULTY * torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    gap = GAP + SPREAD * torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    return WindowLosses((difficulty + gap) * lengths, lengths), WindowLosses(difficulty * lengths, lengths)


def error_is_the_scatter_of_the_ratio(compare):
    """Over many sets of windows, the mean squared standard error is the variance of the ratio."""
    generator, lengths = torch.Generator().manual_seed(0), torch.full((WINDOWS,), 255)
    found = [compare(*drawn(generator, lengths)) for _ in range(3000)]
    scatter = torch.tensor([ratio.ratio for ratio in found], dtype=torch.float64).var()
    squared = torch.tensor([ratio.standard_error for ratio in found], dtype=torch.float64).square().mean()
    assert abs(squared / scatter - 1) < 0.1


def ratio_is_that_of_the_perplexities(compare):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        losses, reference = drawn(generator, torch.randint(5, 300, (WINDOWS,), generator=generator))
        assert math.isclose(compare(losses, reference).ratio, losses.perplexity / reference.perplexity, rel_tol=1e-12)


def error_knows_how_long_windows_are(compare):
    """By leaving each window out in turn (the jackknife), to the order of one window's weight."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 300, (200,), generator=generator)
    losses, reference = drawn(generator, lengths)
    difference = losses.nll - reference.nll
    without = (difference.sum() - difference) / (lengths.sum() - lengths)
    jackknife = ((len(lengths) - 1) * without.var(correction=0)).sqrt()
    ratio = compare(losses, reference)
    assert abs(ratio.standard_error / (ratio.ratio * jackknife) - 1) < 0.02


def repeating_windows_changes_no_error(compare):
    """Windows that come twice are no more text."""
    generator = torch.Generator().manual_seed(2)
    losses, reference = drawn(generator, torch.full((12,), 255))
    documents = torch.arange(12) // 3
    once, twice = (
        compare(*(WindowLosses(each.nll.repeat(n), each.tokens.repeat(n), documents.repeat(n)) for each in pair))
        for n, pair in ((1, (losses, reference)), (2, (losses, reference)))
    )
    assert math.isclose(once.ratio, twice.ratio) and math.isclose(once.standard_error, twice.standard_error)


def error_is_the_scatter_between_documents(compare):
    """Windows of one document share half of what distinguishes two models: over many texts, as above."""
    generator, documents, found = torch.Generator().manual_seed(3), torch.arange(24) // 3, []
    for _ in range(2000):
        losses, reference = drawn(generator, torch.full((24,), 255))
        shared = SPREAD * torch.randn(8, generator=generator, dtype=torch.float64)[documents] * losses.tokens
        pair = WindowLosses(losses.nll + shared, losses.tokens, documents), replace(reference, documents=documents)
        found.append(compare(*pair))
    scatter = torch.tensor([ratio.ratio for ratio in found], dtype=torch.float64).var()
    squared = torch.tensor([ratio.standard_error for ratio in found], dtype=torch.float64).square().mean()
    assert abs(squared / scatter - 1) < 0.1


def neighbours_taken_for_independent(losses, reference):
    return perplexity_ratio(replace(losses, documents=None), reference)


def unpaired(losses, reference):
    a, b = losses.nll / losses.tokens, reference.nll / reference.tokens
    ratio = perplexity_ratio(losses, reference).ratio
    return Ratio(ratio, ratio * ((a.var() + b.var()) / len(a)).sqrt().item())


def scaled(factor):
    def compare(losses, reference):
        right = perplexity_ratio(losses, reference)
        return Ratio(right.ratio, right.standard_error * factor(losses.tokens.sum().item()))

    return compare


def mean_of_ratios(losses, reference):
    ratios = losses.perplexities / reference.perplexities
    return Ratio(ratios.mean().item(), (ratios.var() / len(ratios)).sqrt().item())


def of_mean_perplexities(losses, reference):
    ratio = losses.perplexities.mean() / reference.perplexities.mean()
    return Ratio(ratio.item(), perplexity_ratio(losses, reference).standard_error)


def lengths_overlooked(losses, reference):
    differences = (losses.nll - reference.nll) / losses.tokens
    ratio = perplexity_ratio(losses, reference).ratio
    return Ratio(ratio, ratio * (differences.var() / len(differences)).sqrt().item())


FACTS = (
    error_is_the_scatter_of_the_ratio,
    ratio_is_that_of_the_perplexities,
    error_knows_how_long_windows_are,
    repeating_windows_changes_no_error,
    error_is_the_scatter_between_documents,
)
MISTAKES = {
    "windows that come twice": (neighbours_taken_for_independent, repeating_windows_changes_no_error),
    "neighbours taken for independent": (neighbours_taken_for_independent, error_is_the_scatter_between_documents),
    "unpaired": (unpaired, error_is_the_scatter_of_the_ratio),
    "tokens counted as if they were windows": (
        scaled(lambda tokens: (WINDOWS / tokens) ** 0.5),
        error_is_the_scatter_of_the_ratio,
    ),
    "the spread, not the error of the mean": (scaled(lambda tokens: WINDOWS**0.5), error_is_the_scatter_of_the_ratio),
    "m where m - 1 belongs": (
        scaled(lambda tokens: ((WINDOWS - 1) / WINDOWS) ** 0.5),
        error_is_the_scatter_of_the_ratio,
    ),
    "mean of ratios": (mean_of_ratios, ratio_is_that_of_the_perplexities),
    "ratio of mean perplexities": (of_mean_perplexities, ratio_is_that_of_the_perplexities),
    "lengths overlooked": (lengths_overlooked, error_knows_how_long_windows_are),
}


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_paired_comparison(fact):
    fact(perplexity_ratio)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_comparison_is_found(mistake):
    compare, fact = MISTAKES[mistake]
    with pytest.raises(AssertionError):
        fact(compare)


@given(recipes())
def test_windows_together_have_the_perplexity_of_the_text(recipe):
    model, ids, mask = recipe.model(), recipe.tokens(), recipe.mask()
    losses = window_losses(model, ids, mask)
    assert math.isclose(losses.perplexity, perplexity(model, ids, mask), rel_tol=1e-9)
    assert losses.tokens.tolist() == [length - 1 for length in recipe.lengths()]


def test_a_model_and_itself_differ_by_nothing():
    recipe = Recipe("opt")
    losses = window_losses(recipe.model(), recipe.tokens())
    ratio = perplexity_ratio(losses, losses)
    assert (ratio.ratio, ratio.standard_error) == (1.0, 0.0)
    fused = perplexity_ratio(window_losses(fuse(recipe.model()), recipe.tokens()), losses)
    assert abs(fused.ratio - 1) < 1e-9 and fused.standard_error < 1e-9


def test_a_ratio_says_how_far_it_is_from_a_value():
    assert Ratio(1.06, 0.02).errors_above() == pytest.approx(3)
    assert Ratio(0.98, 0.02).errors_above(1.0) == pytest.approx(-1)
    assert Ratio(1.1, 0.0).errors_above() == math.inf and Ratio(0.9, 0.0).errors_above() == -math.inf
    assert str(Ratio(1.06, 0.02)) == "1.0600 ± 0.0200"


def test_what_can_not_be_paired_is_refused():
    recipe = Recipe("opt")
    losses = window_losses(recipe.model(), recipe.tokens())
    with pytest.raises(ValueError, match="measure both models on the same tokens"):
        perplexity_ratio(losses, window_losses(recipe.model(), recipe.tokens()[:2]))
    one = window_losses(recipe.model(), recipe.tokens()[:1])
    with pytest.raises(ValueError, match="at least two windows and documents, got 1"):
        perplexity_ratio(one, one)
    with pytest.raises(ValueError, match="nothing to predict"):
        window_losses(recipe.model(), recipe.tokens()[:, :1])
