"""`measuring.layers`: what is compared does not see a rotation, and sees what slicing takes."""

import copy

import pytest
import torch
from models import FAMILIES, Recipe

import minislice
from minislice.measuring import layers
from minislice.rotation import random_orthogonal


@pytest.fixture(params=FAMILIES)
def recipe(request):
    return Recipe(request.param, layers=3)


def rotations_are_not_seen(recipe) -> None:
    model = minislice.fuse(recipe.model())
    rotated = copy.deepcopy(model)
    minislice.rotate(rotated, seed=1)
    assert max(layers.signal_errors(model, rotated, recipe.tokens())) < 1e-9


def test_rotations_are_not_seen(recipe):
    rotations_are_not_seen(recipe)


def test_comparing_the_signals_themselves_is_found(recipe, monkeypatch):
    monkeypatch.setattr(layers, "inner_products", lambda x: x)
    with pytest.raises(AssertionError):
        rotations_are_not_seen(recipe)


def test_slicing_is_seen_at_every_boundary_and_more_of_it_more(recipe):
    model = minislice.fuse(recipe.model())
    errors = []
    for width in (recipe.width - 2, recipe.width // 2):
        sliced = minislice.slice_model(copy.deepcopy(model), recipe.tokens(), width=width)
        errors.append(layers.signal_errors(model, sliced, recipe.tokens()))
    assert len(errors[0]) == len(sliced.slicing.widths)
    assert all(0 < few < many for few, many in zip(*errors, strict=True))


def test_the_difference_is_of_the_inner_products_less_the_mean_row():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64)
    z = (x + 100) @ random_orthogonal(6, generator)  # the same in every token: no block could tell
    assert layers.relative_difference(x, z) < 1e-9
    assert layers.relative_difference(x, torch.zeros(2, 9, 3, dtype=torch.float64)) == 1


def test_a_model_that_is_not_fused_is_refused():
    model = Recipe("llama").model()
    with pytest.raises(ValueError, match=r"after minislice\.fuse, before it is sliced"):
        layers.signal_errors(model, minislice.fuse(copy.deepcopy(model)), Recipe("llama").tokens())
