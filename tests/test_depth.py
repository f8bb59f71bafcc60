"""Depth removal: the facts of `depth_properties`, on every family; what is refused."""

import dataclasses

import depth_properties as properties
import pytest
import torch
from family_models import FAMILIES, FamilyRecipe
from models import Recipe
from test_families import CASES, fixed

import minislice
from minislice.architecture.network import network
from minislice.beyond import depth
from minislice.beyond.depth import delete_layers, losses_without_each

LLAMA = Recipe("llama", layers=3, seed=7)
# Attention that is divided by the layer's number; layers that are dense or sparse by their number.
NUMBERED = {
    ("gpt2", 1): "divides its attention by the layer's number",
    ("qwen2_moe", 1): "layers differ in shape by their number",
    ("qwen3_moe", 1): "layers differ in shape by their number",
}


@pytest.mark.parametrize(("family", "variant"), [case for case in CASES if case not in NUMBERED])
def test_every_family_stays_of_its_own_class(family, variant):
    recipe = fixed(family, variant, tied=variant % 2 == 0)
    properties.a_shorter_model_is_saved_by_its_own_class(recipe)
    properties.a_shorter_model_generates_the_same_with_a_cache(recipe)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loses_the_layer_that_hurts_least(family):
    properties.each_deleted_layer_hurts_least(fixed(family))


def test_a_shorter_model_can_be_sliced():
    model = minislice.slice_model(properties.shortened(LLAMA), LLAMA.tokens(), width=16)
    assert network(model).widths == [20, *[16] * 3, 20]  # the head stays tied


@pytest.mark.parametrize(("size", "layers"), [(1.0, 4), (0.99, 3), (0.8, 2), (0.65, 1)])
def test_a_size_is_reached_with_as_few_layers_as_will_do(size, layers):
    """Each of its four layers has 12% of mini-phi's parameters."""
    model, tokenizer = minislice.load("mini-phi")
    dense, each = minislice.parameters(model), minislice.parameters(network(model).layers[0])
    tokens = tokenizer("def first(rows): return rows[0]", return_tensors="pt")
    delete_layers(model, tokens, size=size)
    assert len(network(model).layers) == layers
    assert size * dense - each < minislice.parameters(model) <= size * dense


def test_what_is_known_of_the_order_is_not_measured_again(monkeypatch):
    recipe = dataclasses.replace(LLAMA, layers=4)
    whole = properties.shortened(recipe, layers=3)
    order, measured = whole.deleted_layers, []
    monkeypatch.setattr(
        depth, "losses_without_each", lambda net, batches: measured.append(net) or losses_without_each(net, batches)
    )
    model = delete_layers(recipe.model(), recipe.tokens(), layers=3, known=order[:2], batch_size=3)
    assert model.deleted_layers == order and len(measured) == 1
    properties.assert_same_logits(model, whole, recipe, 0.0)
    assert delete_layers(recipe.model(), recipe.tokens(), layers=1, known=order).deleted_layers == order[:1]


def mixed_layers(model):
    network(model).layers[1].blocks[1].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(40).double())


def no_numbers(model):
    model.lm_head.weight.data.fill_(torch.nan)


REFUSED = {
    "neither": ({}, "one of layers and size"),
    "both": ({"layers": 1, "size": 0.5}, "one of layers and size"),
    "all": ({"layers": 3}, "from 0 to 2, got 3"),
    "less than none": ({"layers": -1}, "got -1"),
    "nothing": ({"size": 0.0}, "0 < size <= 1, got 0.0"),
    "more than all": ({"size": 1.2}, "got 1.2"),
    "unknown": ({"layers": 1, "known": [3]}, r"numbers from 0 to 2, each once, got \[3\]"),
    "known twice": ({"layers": 2, "known": [1, 1]}, r"each once, got \[1, 1\]"),
    "too small": ({"size": 0.05}, r"5% of [\d,]+ parameters can't be reached: 3 layers of [\d,]+"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_said_before_anything_is_done(options, message):
    model = LLAMA.model()
    with pytest.raises(ValueError, match=message):
        delete_layers(model, LLAMA.tokens(), **options)
    assert len(network(model).layers) == 3 == model.config.num_hidden_layers


MODELS = {
    "sliced": (lambda model: minislice.slice_model(model, LLAMA.tokens(), width=16), "delete first, and slice"),
    "mixed": (mixed_layers, "differ in shape"),
    "NaN": (no_numbers, "isn't a number"),
}


@pytest.mark.parametrize(("change", "message"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_lose_a_layer_is_refused(change, message):
    model = LLAMA.model() if change is not mixed_layers else dataclasses.replace(LLAMA, biases=False).model()
    change(model)
    with pytest.raises(ValueError, match=message):
        delete_layers(model, LLAMA.tokens(), layers=1)
    assert len(network(model).layers) == 3 == model.config.num_hidden_layers


@pytest.mark.parametrize("case", NUMBERED)
def test_a_layer_that_computes_with_its_number_cannot_get_another(case):
    family, variant = case
    recipe = FamilyRecipe(family, variant=variant, layers=3)
    with pytest.raises(ValueError, match=NUMBERED[case]):
        delete_layers(recipe.model(), recipe.tokens(), layers=1)
