"""The facts of depth removal, each a function that asserts it on the model of one recipe; see `properties`."""

import math
import tempfile

import torch
from inner_properties import silenced
from models import Recipe
from properties import EXACT, assert_same_logits, cached_generation_equals_uncached, logits, relative_error
from torch import nn
from transformers import AutoModelForCausalLM

from minislice import perplexity
from minislice.architecture.network import network
from minislice.beyond.depth import delete_layers, losses_without_each
from minislice.corpus.batches import token_batches


def shortened(recipe: Recipe, layers: int = 1) -> nn.Module:
    """The recipe's model with so many layers fewer."""
    return delete_layers(recipe.model(), recipe.tokens(), recipe.mask(), layers=layers, batch_size=3)


def without(model: nn.Module, index: int) -> nn.Module:
    """A copy with a layer that writes nothing: deletion by other means."""
    count = network(model).blocks_per_layer
    return silenced(model, range(index * count, (index + 1) * count))


def a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing(recipe: Recipe) -> None:
    """The partial passes of `losses_without_each`, against whole ones."""
    model, ids, mask = recipe.model(), recipe.tokens(), recipe.mask()
    losses = losses_without_each(network(model), token_batches(model, ids, mask, batch_size=3))
    expected = [math.log(perplexity(without(model, index), ids, mask)) for index in range(recipe.layers)]
    assert relative_error(torch.tensor(losses), torch.tensor(expected)) <= 1e-6
    assert_same_logits(model, recipe.model(), recipe, 0.0)


def each_deleted_layer_hurts_least(recipe: Recipe) -> None:
    """Of all that there are at the time, every one tried."""
    model, left = recipe.model(), list(range(recipe.layers))
    deleted = shortened(recipe, layers=recipe.layers - 1).deleted_layers
    for number in deleted:
        tried = [without(model, index) for index in left]
        losses = [math.log(perplexity(other, recipe.tokens(), recipe.mask())) for other in tried]
        assert losses[left.index(number)] <= min(losses) + 1e-6
        model = tried[left.index(number)]
        left.remove(number)
    assert_same_logits(shortened(recipe, layers=recipe.layers - 1), model, recipe, EXACT)


def a_shorter_model_is_saved_by_its_own_class(recipe: Recipe) -> None:
    """Transformers reads it again, and it computes the same."""
    model, ids, mask = shortened(recipe).float(), recipe.tokens(seed=1), recipe.mask()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(again) is type(recipe.model()) and again.config.num_hidden_layers == recipe.layers - 1
    assert relative_error(logits(again, ids, mask), logits(model, ids, mask)) <= 1e-6  # experts: in another order


def a_shorter_model_generates_the_same_with_a_cache(recipe: Recipe) -> None:
    model = shortened(recipe)
    caches = {module.layer_idx for module in model.modules() if hasattr(module, "layer_idx")}
    assert caches == {*range(recipe.layers - 1)}
    cached_generation_equals_uncached(recipe, model)
