"""`measuring.layers`: what is compared does not see a rotation, and sees what slicing takes."""

import copy

from models import Recipe

import minislice
from minislice.measuring import layers


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
