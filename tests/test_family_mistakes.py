"""Each generalisation is needed: without it, or done wrong, a property of its family fails."""

import dataclasses

import properties
import pytest
import torch
from family_models import FamilyRecipe

from minislice import fuse
from minislice.architecture import families
from minislice.architecture.blocks import set_weight
from minislice.architecture.families import FAMILIES
from minislice.architecture.network import network


def fixed(family: str, variant: int = 0, **fields) -> FamilyRecipe:
    fields = {"layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 4, "seed": 3, "eps": 1e-3, **fields}
    return FamilyRecipe(family, variant=variant, **fields)


def entry(family: str, **changes):
    """Another entry in the table."""
    return lambda patch: patch.setitem(FAMILIES, family, dataclasses.replace(FAMILIES[family], **changes))


def norm(family: str, **changes):
    return entry(family, norm=dataclasses.replace(FAMILIES[family].norm, **changes))


def set_to(target: str, version):
    return lambda patch: patch.setattr(target, version)


def conv1d_transposed(patch):
    def weight(linear):
        return linear.module.weight if linear.module.nf == linear.module.nx else linear.module.weight.T

    patch.setattr("minislice.architecture.linears.StoredLinear.weight", property(weight, families_setter))


def families_setter(linear, weight):
    linear.module.weight = torch.nn.Parameter(weight.T.contiguous())


MISTAKES = {
    "1 + w taken for w": (norm("gemma", offset=0.0), fixed("gemma")),
    "w taken for 1 + w": (norm("llama", offset=1.0), fixed("llama")),
    "1 + w taken for w in a LayerNorm": (norm("nemotron", offset=0.0), fixed("nemotron")),
    "mean left in": (norm("cohere", subtracts_mean=False), fixed("cohere")),
    "mean subtracted from an RMSNorm": (norm("mistral", subtracts_mean=True), fixed("mistral")),
    "another eps": (norm("olmo", eps=1e-2), fixed("olmo")),
    "the residual multiplier dropped": (entry("granite", branch_scale=None), fixed("granite")),
    "the residual multiplier kept and folded": (
        set_to("minislice.fusion.scale_output", lambda linear, number: set_weight(linear, linear.weight * number**2)),
        fixed("granite"),
    ),
    "the second norm of a parallel layer ignored": (
        set_to("minislice.architecture.blocks.Block.norm_of", lambda block, name: block.norm),
        fixed("gpt_neox"),
    ),
    "the second norm of Falcon 40B ignored": (
        set_to("minislice.architecture.blocks.Block.norm_of", lambda block, name: block.norm),
        fixed("falcon", 1),
    ),
    "a sequential layer taken for a parallel one": (
        entry("gpt_neox", blocks=(families._gpt_neox_blocks(fixed("gpt_neox", 0).config()))),
        fixed("gpt_neox", 1),
    ),
    "Conv1D transposed": (conv1d_transposed, fixed("gpt2")),
    "the embedding's norm forgotten": (entry("bloom", embedding_norm=None), fixed("bloom")),
    "the residual added twice": (
        set_to("torch.Tensor.new_zeros", lambda x, size, **k: x if size == () else torch.zeros(size).to(x)),
        fixed("bloom"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_fusion_does_not_preserve_the_logits_with(name, monkeypatch):
    plant, recipe = MISTAKES[name]
    properties.fusion_preserves_logits(recipe)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        properties.fusion_preserves_logits(recipe)


# G9: layers of one model may differ in their context.


def spectra_are_the_dense_models(recipe: FamilyRecipe) -> None:
    """At full width the pass changes nothing, so every spectrum is that of the dense model's own hidden states."""
    ids, model = recipe.tokens(), fuse(recipe.model())
    layers, states = network(model).layers, []
    hooks = [layer.register_forward_pre_hook(lambda _, args: states.append(args[0])) for layer in layers]
    properties.logits(model, ids)
    for hook in hooks:
        hook.remove()
    report = properties.sliced(recipe, model, slicing=0, signal="raw").slicing
    per_layer = len(network(model).blocks) // len(layers)
    for layer, state in enumerate(states):
        rows = state.flatten(0, 1)
        expected = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
        error = properties.relative_error(report.eigenvalues[layer * per_layer], expected)
        assert error <= properties.EXACT, f"the spectrum before layer {layer} is off by {error:.1e}"


MIXED = [("qwen2", 0), ("qwen3", 0), ("ministral", 0), ("cohere2", 0), ("smollm3", 1)]


@pytest.mark.parametrize(("family", "variant"), MIXED)
def test_the_spectrum_before_every_layer_is_the_dense_models_own(family, variant):
    spectra_are_the_dense_models(fixed(family, variant, layers=4))


def test_one_layers_mask_for_all_shows_in_the_spectra_and_nowhere_else(monkeypatch):
    recipe, right = fixed("qwen2", layers=4), network(fixed("qwen2").model()).__class__.embed

    def embed(net, *arguments):
        signal, contexts = right(net, *arguments)
        return signal, [contexts[0]] * len(contexts)

    monkeypatch.setattr("minislice.architecture.network.Network.embed", embed)
    properties.full_width_preserves_logits(recipe)  # any basis is exact
    with pytest.raises(AssertionError, match="the spectrum before layer 2"):
        spectra_are_the_dense_models(recipe)
