"""Sections 3.1 to 3.3: what must not change the network's output, over random models of all families."""

import copy

import properties
import pytest
import torch
from hypothesis import given
from models import FAMILIES, Recipe, recipes

from minislice import fuse, rotate
from minislice.architecture.blocks import RMSNorm
from minislice.architecture.network import network
from minislice.rotation import random_orthogonal


@pytest.mark.parametrize("heads", [1, 2])
def test_random_orthogonal_is_haar(heads):
    properties.random_orthogonal_is_haar(Recipe("opt", heads=heads, head_dim=2))


@pytest.mark.parametrize("family", FAMILIES)
def test_given_rotations_are_the_ones_applied(family):
    recipe = Recipe(family)
    model = properties.fused(recipe)
    generator = torch.Generator().manual_seed(3)
    rotations = [random_orthogonal(recipe.width, generator) for _ in range(len(network(model).blocks) + 1)]
    many = rotate(copy.deepcopy(model), rotations)
    with torch.no_grad():
        before, _ = network(model).embed(recipe.tokens())
        for rotated in (rotate(copy.deepcopy(model), rotations[0]), many):
            after, _ = network(rotated).embed(recipe.tokens())
            assert properties.relative_error(after, before @ rotations[0]) <= properties.EXACT
    properties.assert_same_logits(many, model, recipe, properties.EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_rotations_compose(family):
    recipe = Recipe(family)
    twice = rotate(rotate(recipe.model(), seed=1), seed=2)
    properties.assert_same_logits(twice, properties.fused(recipe), recipe, properties.EXACT)


@given(recipes(families=("opt", "phi")))
def test_fused_layernorm_model_has_a_signal_of_mean_zero(recipe):
    """Why an RMSNorm may stand for a LayerNorm: nothing that enters it has a mean left to subtract."""
    model, means = properties.fused(recipe), []
    for norm in network(model).norms:
        norm.register_forward_pre_hook(lambda _, args: means.append(args[0].mean(-1).abs().max() / args[0].abs().max()))
    properties.logits(model, recipe.tokens(), recipe.mask())
    assert len(means) == len(network(model).norms)
    assert max(means) <= 1e-12


@given(recipes())
def test_fused_norms_have_no_weights_and_keep_the_models_eps(recipe):
    norms = network(properties.fused(recipe)).norms
    for norm in norms:
        assert isinstance(norm, RMSNorm) and not list(norm.parameters())
        assert (norm.eps, norm.trained_width) == (recipe.eps, recipe.width)


@given(recipes())
def test_fused_head_never_shares_the_embedding(recipe):
    model = properties.fused(recipe)
    model.tie_weights()  # what transformers does after loading, by the config
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    properties.assert_same_logits(model, properties.fused(recipe), recipe, 0.0)


def test_models_that_share_a_config_stay_apart():
    model, other = (Recipe("llama", seed=seed).model() for seed in (0, 1))
    other.config = model.config
    fuse(model)
    assert other.config.tie_word_embeddings and not model.config.tie_word_embeddings


@pytest.mark.parametrize("action", [fuse, rotate], ids=["fuse", "rotate"])
def test_a_transformed_model_is_the_same_object_in_the_same_mode(action):
    model = Recipe("opt", tied=False).model().train()
    model.lm_head.requires_grad_(False)
    assert action(model) is model
    assert all(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith("lm_head")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_rotated_model_gets_a_gradient(family):
    recipe = Recipe(family, tied=False, biases=False)
    model = rotate(recipe.model(), per_block=True)
    model(input_ids=recipe.tokens(), labels=recipe.tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
