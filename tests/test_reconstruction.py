"""All matrices of a block move: never worse on what is held out, nearer on what is learned, not if nothing is lost.

Each property is also run against a mistake, and must fail there.
"""

import pytest
import torch
from family_models import REPRESENTATIVES, fixed
from inner_properties import cut_signal, missing
from models import Recipe
from properties import assert_same_logits, sliced

import minislice
from minislice.beyond import reconstruction
from minislice.beyond.neurons import delete_neurons, solve_block

OPT, LLAMA, PHI = (Recipe(family, heads=4, head_dim=4, hidden=20, seed=7) for family in ("opt", "llama", "phi"))
PADDED = Recipe("llama", heads=4, head_dim=4, hidden=20, padding="left", seed=7)
every_recipe = pytest.mark.parametrize("recipe", [PADDED, OPT, PHI], ids=lambda recipe: recipe.family)


def errors(recipe: Recipe, reconstruct: bool) -> tuple[float, float]:
    """Behind the first block, read from a cut signal, its error on three batches that are learned from, and held out.

    Padding doesn't count; the last of four batches is held out.
    """
    case = held, block, Z, P, wanted = cut_signal(recipe, recipe.width // 2, 0, batch_size=1)
    with torch.no_grad():
        if reconstruct:
            solve_block(held, block, 0, Z, P, wanted, block.neurons // 4, reconstruct=True)
        else:
            learned, _ = reconstruction.split(held, Z, wanted)
            solve_block(learned[0], block, 0, learned[1], P, learned[2], block.neurons // 4)
    *learned_from, held_out = missing(*case)
    return sum(learned_from), held_out


def held_out_error_never_grows(recipe: Recipe) -> None:
    assert errors(recipe, True)[1] <= errors(recipe, False)[1] * (1 + 1e-9)


def what_is_learned_comes_nearer(recipe: Recipe) -> None:
    assert errors(recipe, True)[0] < 0.9 * errors(recipe, False)[0]


@pytest.fixture
def learnable(monkeypatch):
    """The batch that is held out is one that is learned from: random text has nothing to learn for another."""
    split = reconstruction.split
    monkeypatch.setattr(reconstruction, "split", lambda *signals: [split(*signals)[0]] * 2)


@every_recipe
def test_the_error_on_what_is_held_out_never_grows(recipe):
    held_out_error_never_grows(recipe)


@every_recipe
def test_what_is_learned_comes_nearer(recipe, learnable):
    what_is_learned_comes_nearer(recipe)


def test_it_is_found_when_the_best_pass_is_chosen_by_what_is_learned(monkeypatch):
    reconstruct = reconstruction.reconstruct
    monkeypatch.setattr(reconstruction, "reconstruct", lambda *others: reconstruct(*others[:-1], others[-2]))
    with pytest.raises(AssertionError):
        held_out_error_never_grows(PADDED)


def test_it_is_found_when_something_else_is_learned(learnable, monkeypatch):
    right = reconstruction.reconstruct
    in_reverse = lambda block, layer, P, *parts: right(block, layer, P.flip(0), *parts)  # noqa: E731
    monkeypatch.setattr(reconstruction, "reconstruct", in_reverse)
    with pytest.raises(AssertionError):
        what_is_learned_comes_nearer(PADDED)


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES)
def test_where_nothing_is_lost_nothing_moves(family, variant):
    recipe = fixed(family, variant, layers=2)
    model = sliced(recipe, slicing=0, repair=True, reconstruct=True, batch_size=1)
    assert_same_logits(model, recipe.model(), recipe, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_model_with_fewer_neurons_is_reconstructed_and_keeps_its_class(dtype):
    models = [LLAMA.model().to(dtype) for _ in range(2)]
    for model, reconstruct in zip(models, (False, True), strict=True):
        asked = {"neurons": 0.5, "multiple": 4, "repair": True, "reconstruct": reconstruct, "batch_size": 1}
        delete_neurons(model, LLAMA.tokens(), **asked)
    shapes = [{name: (p.shape, p.dtype, p.requires_grad) for name, p in m.named_parameters()} for m in models]
    assert shapes[0] == shapes[1] and type(models[1]) is type(LLAMA.model())


@pytest.mark.parametrize("function", [minislice.slice_model, delete_neurons])
def test_it_is_refused_without_repair(function):
    with pytest.raises(ValueError, match="give repair as well"):
        function(LLAMA.model(), LLAMA.tokens(), reconstruct=True)


def test_one_sequence_leaves_nothing_to_hold_out_and_nothing_moves():
    asked = {"repair": True, "batch_size": 1}
    models = [delete_neurons(LLAMA.model(), LLAMA.tokens()[:1], reconstruct=r, **asked) for r in (False, True)]
    assert_same_logits(*models, LLAMA, 0.0)
