"""All matrices of a block move: never worse on what is held out, nearer on what is learned, not if nothing is lost.

Each property is also run against a mistake, and must fail there.
"""

from dataclasses import replace

import pytest
import torch
from family_models import REPRESENTATIVES
from models import Recipe
from properties import assert_same_logits, fused, sliced
from test_families import fixed

import minislice
from minislice.architecture.network import inference, network
from minislice.beyond import neurons, reconstruction
from minislice.beyond.neurons import solve_block
from minislice.calibration import Calibration
from minislice.corpus.batches import token_batches
from minislice.rotation import fold_reader

PADDED = Recipe("llama", heads=4, head_dim=4, hidden=20, padding="left", seed=7)
RECIPES = [PADDED, *(Recipe(family, heads=4, head_dim=4, hidden=20, seed=7) for family in ("opt", "phi"))]


def errors(recipe: Recipe, reconstruct: bool) -> tuple[list[float], list[float]]:
    """Behind the first block, read from a cut signal, its error on each batch: learned from, held out.

    Padding doesn't count; the last of four batches is held out.
    """
    net, P = network(fused(recipe)), torch.eye(recipe.width).double()[:, : recipe.width // 2]
    held, block = Calibration(token_batches(net.model, recipe.tokens(), recipe.mask(), 1)), net.blocks[0]
    with inference(net.model):
        X = held.embed(net)
        wanted = held.forward(block, 0, X)
        for linear in block.w_in:
            fold_reader(linear, P)
        Z, found = held.project(X, P), []
        if reconstruct:
            solve_block(held, block, 0, Z, P, wanted, block.neurons // 4, reconstruct=True)
        else:
            learned, _ = reconstruction.split(held, Z, wanted)
            solve_block(learned[0], block, 0, learned[1], P, learned[2], block.neurons // 4)
        for z, x, batch, contexts in zip(Z, wanted, held.batches, held.contexts, strict=True):
            missing = x - z @ P.T - block.branch(z, **contexts[0])
            share = missing.square().mean(-1) / x.square().mean(-1)
            found.append((share if batch.mask is None else share[batch.mask]).mean().item())
    return found[:-1], found[-1:]


def held_out_error_never_grows(recipe: Recipe) -> None:
    (_, [before]), (_, [after]) = errors(recipe, False), errors(recipe, True)
    assert after <= before * (1 + 1e-9)


def what_is_learned_comes_nearer(recipe: Recipe) -> None:
    (before, _), (after, _) = errors(recipe, False), errors(recipe, True)
    assert sum(after) < 0.9 * sum(before)


FACTS = (held_out_error_never_grows, what_is_learned_comes_nearer)


@pytest.fixture
def learnable(monkeypatch):
    """The batch that is held out is one that is learned from: random text has nothing to learn for another."""

    def split(calibration, *signals):
        right = reconstruction_split(calibration, *signals)
        return [right[0], right[0]]

    reconstruction_split = reconstruction.split
    monkeypatch.setattr(reconstruction, "split", split)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.family)
def test_the_error_on_what_is_held_out_never_grows(recipe):
    held_out_error_never_grows(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.family)
def test_what_is_learned_comes_nearer(recipe, learnable):
    what_is_learned_comes_nearer(recipe)


def test_it_is_found_when_the_best_pass_is_chosen_by_what_is_learned(monkeypatch):
    reconstruct = reconstruction.reconstruct
    monkeypatch.setattr(reconstruction, "reconstruct", lambda *others: reconstruct(*others[:-1], others[-2]))
    with pytest.raises(AssertionError):
        held_out_error_never_grows(PADDED)


@pytest.mark.parametrize("mistake", ["basis forgotten", "uphill"])
def test_it_is_found_when_something_else_is_learned(mistake, learnable, monkeypatch):
    reconstruct, grad = reconstruction.reconstruct, torch.autograd.grad
    if mistake == "uphill":
        monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: [g if g is None else -g for g in grad(*a, **k)])
    else:
        monkeypatch.setattr(
            reconstruction, "reconstruct", lambda block, layer, P, *parts: reconstruct(block, layer, P.flip(0), *parts)
        )
    with pytest.raises(AssertionError):
        what_is_learned_comes_nearer(PADDED)


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES)
def test_where_nothing_is_lost_nothing_moves(family, variant):
    recipe = replace(fixed(family, variant), layers=2)
    model = sliced(recipe, slicing=0, repair=True, reconstruct=True, batch_size=1)
    assert_same_logits(model, recipe.model(), recipe, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_model_with_fewer_neurons_is_reconstructed_and_keeps_its_class(dtype):
    recipe = Recipe("llama", heads=4, head_dim=4, hidden=20, seed=3)
    models = [recipe.model().to(dtype) for _ in range(2)]
    for model, reconstruct in zip(models, (False, True), strict=True):
        asked = {"neurons": 0.5, "multiple": 4, "repair": True, "reconstruct": reconstruct, "batch_size": 1}
        minislice.delete_neurons(model, recipe.tokens(), **asked)
    shapes = [{name: (p.shape, p.dtype, p.requires_grad) for name, p in m.named_parameters()} for m in models]
    assert shapes[0] == shapes[1] and type(models[1]) is type(recipe.model())


def test_it_is_refused_without_repair():
    recipe = Recipe("llama")
    with pytest.raises(ValueError, match="give repair as well"):
        minislice.slice_model(recipe.model(), recipe.tokens(), slicing=0.25, reconstruct=True)
    with pytest.raises(ValueError, match="give repair as well"):
        minislice.delete_neurons(recipe.model(), recipe.tokens(), reconstruct=True)


def test_one_sequence_leaves_nothing_to_hold_out_and_nothing_moves():
    recipe = Recipe("llama", heads=4, head_dim=4, hidden=20)
    models = [recipe.model() for _ in range(2)]
    for model, reconstruct in zip(models, (False, True), strict=True):
        neurons.delete_neurons(model, recipe.tokens()[:1], repair=True, reconstruct=reconstruct)
    assert_same_logits(*models, recipe, 0.0)
