"""Each generalisation is needed: without it, or done wrong, a property of its family fails."""

import dataclasses

import properties
import pytest
import torch
from family_models import FamilyRecipe
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from minislice import fuse
from minislice.architecture.families import FAMILIES
from minislice.architecture.linears import ExpertsReader, ExpertsWriter, TransposedLinear, set_weight
from minislice.architecture.mixtures import ANY_WIDTH
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

    patch.setattr(TransposedLinear, "weight", property(weight, TransposedLinear.weight.fset))


def without(family: str, *forgotten: str):
    """An entry that leaves linears of the mixture out."""
    blocks = FAMILIES[family].blocks_of(fixed(family).config(), 0)
    w_in = tuple(name for name in blocks[1].w_in if name not in forgotten)
    return entry(family, blocks=(blocks[0], dataclasses.replace(blocks[1], w_in=w_in)))


def last_expert_left_as_it_was(side):
    def plant(patch):
        right = side.store_matrices

        def store_matrices(self, matrices):
            right(self, torch.cat([matrices[:-1], self.matrices()[-1:]]))

        patch.setattr(side, "store_matrices", store_matrices)

    return plant


def transposition_overlooked(patch):
    patch.setattr(ExpertsReader, "matrices", lambda self: self.module.gate_up_proj)
    patch.setattr(ExpertsReader, "store_matrices", lambda self, new: self.store("gate_up_proj", new))


def biases_left_as_they_were(patch):
    right = ExpertsWriter.store
    patch.setattr(ExpertsWriter, "store", lambda self, name, x: None if "bias" in name else right(self, name, x))


def one_expert_a_token(patch):
    right = ALL_EXPERTS_FUNCTIONS[ANY_WIDTH]
    one = lambda experts, x, index, weights: right(experts, x, index[:, :1], weights[:, :1])  # noqa: E731
    patch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, ANY_WIDTH, one)


MISTAKES = {
    "1 + w taken for w": (norm("gemma", offset=0.0), fixed("gemma")),
    "w taken for 1 + w": (norm("llama", offset=1.0), fixed("llama")),
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
        fixed("falcon", 1),
    ),
    "a sequential layer taken for a parallel one": (
        entry("gpt_neox", blocks=FAMILIES["gpt_neox"].blocks_of(fixed("gpt_neox", 0).config(), 0)),
        fixed("gpt_neox", 1),
    ),
    "Conv1D transposed": (conv1d_transposed, fixed("gpt2")),
    "the embedding's norm forgotten": (entry("bloom", embedding_norm=None), fixed("bloom")),
    "the residual added twice": (
        set_to("torch.Tensor.new_zeros", lambda x, size, **k: x if size == () else torch.zeros(size).to(x)),
        fixed("bloom"),
    ),
    "the router not folded": (without("gpt_oss", "mlp.router"), fixed("gpt_oss")),
    "the shared expert not folded": (
        without("qwen2_moe", "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        fixed("qwen2_moe"),
    ),
    "the shared expert's gate forgotten": (without("qwen2_moe", "mlp.shared_expert_gate"), fixed("qwen2_moe")),
    "one expert forgotten": (last_expert_left_as_it_was(ExpertsReader), fixed("qwen3_moe")),
    "transposed experts taken for others": (
        transposition_overlooked,
        fixed("gpt_oss", hidden=80),  # as wide as twice an expert, so that it fits both ways
    ),
    "one expert a token": (one_expert_a_token, fixed("gpt_oss")),
    "one expert not rotated": (last_expert_left_as_it_was(ExpertsWriter), fixed("mixtral")),
    "the experts' biases not rotated": (biases_left_as_they_were, fixed("gpt_oss")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_logits_are_not_preserved_with(name, monkeypatch):
    plant, recipe = MISTAKES[name]
    preserves = properties.one_rotation_preserves_logits if "rotated" in name else properties.fusion_preserves_logits
    preserves(recipe)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        preserves(recipe)


# Layers of one model may differ in their context.


def spectra_are_the_dense_models(recipe: FamilyRecipe) -> None:
    """At full width the pass changes nothing, so every spectrum is that of the dense model's own hidden states."""
    model = fuse(recipe.model())
    states = model(recipe.tokens(), output_hidden_states=True).hidden_states[:-1]
    report = properties.sliced(recipe, model, slicing=0, signal="raw").slicing
    per_layer = len(network(model).blocks) // len(states)
    for layer, state in enumerate(states):
        rows = state.flatten(0, 1)
        expected = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
        error = properties.relative_error(report.eigenvalues[layer * per_layer], expected)
        assert error <= properties.EXACT, f"the spectrum before layer {layer} is off by {error:.1e}"


@pytest.mark.parametrize(("family", "variant"), [("qwen2", 0), ("cohere2", 0), ("smollm3", 1)])
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
