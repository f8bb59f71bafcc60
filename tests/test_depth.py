"""Depth removal: the facts of `beyond_properties`, on every family; what is refused."""

from dataclasses import replace

import beyond_properties as properties
import pytest
from models import REPRESENTATIVES_FIRST, Recipe, fixed
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture.network import network
from minislice.beyond import depth
from minislice.beyond.depth import delete_layers, losses_without_each
from minislice.corpus.batches import token_batches

LLAMA = Recipe("llama", layers=3, seed=7)
NUMBERED = {  # the layer's number decides what it computes
    ("gpt2", 1): "divides its attention by the layer's number",
    ("qwen2_moe", 1): "layers differ in shape by their number",
    ("qwen3_moe", 1): "layers differ in shape by their number",
}


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES_FIRST)
def test_a_family_stays_of_its_own_class_or_has_layers_that_know_their_number(family, variant):
    recipe = fixed(family, variant, tied=variant % 2 == 0)
    if (family, variant) in NUMBERED:
        with pytest.raises(ValueError, match=NUMBERED[family, variant]):
            properties.shortened(recipe)
        return
    properties.a_shorter_model_is_saved_by_its_own_class(recipe)
    properties.a_shorter_model_generates_the_same_with_a_cache(recipe)


def test_another_model_with_the_same_config_stays_as_it_is():
    config = LLAMA.config()
    model, other = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    delete_layers(minislice.delete_neurons(model, LLAMA.tokens(), neurons=0.5), LLAMA.tokens(), layers=1)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 16)
    assert (other.config.num_hidden_layers, other.config.intermediate_size) == (3, 40)


@pytest.mark.parametrize(("size", "layers"), [(1.0, 3), (0.99, 2), (0.6, 1)])
def test_a_size_is_reached_with_as_few_layers_as_will_do_and_the_model_can_be_sliced(size, layers):
    model, tokens = LLAMA.model(), LLAMA.tokens()
    dense, each = minislice.parameters(model), minislice.parameters(network(model).layers[0])
    delete_layers(model, tokens, size=size)
    assert len(network(model).layers) == layers
    assert size * dense - each < minislice.parameters(model) <= size * dense
    assert network(minislice.slice_model(model, tokens, width=16)).widths == [20, *[16] * (2 * layers - 1), 20]


def test_nothing_is_dropped_out_while_a_model_in_training_mode_is_measured():
    recipe = Recipe("opt")
    model, losses = recipe.model(), []
    model.config.dropout = 0.5
    for is_training in (True, False):
        net = network(model.train(is_training))
        losses.append(losses_without_each(net, token_batches(model, recipe.tokens(), None, 4)))
    assert losses[0] == losses[1]


def test_what_is_known_of_the_order_is_not_measured_again(monkeypatch):
    recipe, measured = replace(LLAMA, layers=4), []
    whole = properties.shortened(recipe, layers=3)
    order = whole.deleted_layers
    monkeypatch.setattr(depth, "losses_without_each", lambda *a: measured.append(a) or losses_without_each(*a))
    model = delete_layers(recipe.model(), recipe.tokens(), layers=3, known=order[:2], batch_size=3)
    assert model.deleted_layers == order and len(measured) == 1
    properties.assert_same_logits(model, whole, recipe, 0.0)
    assert delete_layers(recipe.model(), recipe.tokens(), layers=1, known=order).deleted_layers == order[:1]
