"""Each generalisation is needed: without it, or done wrong, a property of its family fails."""

from dataclasses import replace

import properties
import pytest
import torch
from family_models import FamilyRecipe, fixed

from minislice import fuse
from minislice.architecture.families import FAMILIES
from minislice.architecture.linears import ExpertsReader, ExpertsWriter
from minislice.architecture.network import Network, network


def entry(family: str, **changes):
    """Another entry in the table."""
    return lambda patch: patch.setitem(FAMILIES, family, replace(FAMILIES[family], **changes))


def norm(family: str, **changes):
    return entry(family, norm=replace(FAMILIES[family].norm, **changes))


def last_expert_left_as_it_was(side):
    right = side.store_matrices
    wrong = lambda self, matrices: right(self, torch.cat([matrices[:-1], self.matrices()[-1:]]))  # noqa: E731
    return lambda patch: patch.setattr(side, "store_matrices", wrong)


def residual_added(patch):
    patch.setattr("torch.Tensor.new_zeros", lambda x, size, **k: x if size == () else torch.zeros(size).to(x))


def one_norm_for_both(patch):
    patch.setattr("minislice.architecture.blocks.Block.norm_of", lambda block, name: block.norm)


NEOX = FAMILIES["gpt_neox"].blocks_of(fixed("gpt_neox").config(), 0)
ATTENTION, MIXTURE = FAMILIES["gpt_oss"].blocks
UNROUTED = replace(MIXTURE, w_in=("mlp.experts",))
MISTAKES = {
    "1 + w taken for w": (norm("gemma", offset=0.0), "gemma", {}),
    "mean left in": (norm("cohere", subtracts_mean=False), "cohere", {}),
    "mean subtracted from an RMSNorm": (norm("mistral", subtracts_mean=True), "mistral", {}),
    "the residual multiplier dropped": (entry("granite", branch_scale=None), "granite", {}),
    "the second norm of a parallel layer ignored": (one_norm_for_both, "falcon", {"variant": 1}),
    "a sequential layer taken for a parallel one": (entry("gpt_neox", blocks=NEOX), "gpt_neox", {"variant": 1}),
    "the embedding's norm forgotten": (entry("bloom", embedding_norm=None), "bloom", {}),
    "the residual added twice": (residual_added, "bloom", {}),
    "the router not folded": (entry("gpt_oss", blocks=(ATTENTION, UNROUTED)), "gpt_oss", {}),
    "one expert forgotten": (last_expert_left_as_it_was(ExpertsReader), "qwen3_moe", {}),
    "one expert not rotated": (last_expert_left_as_it_was(ExpertsWriter), "mixtral", {}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_logits_are_not_preserved_with(name, monkeypatch):
    plant, family, fields = MISTAKES[name]
    recipe = fixed(family, eps=1e-3, **fields)
    preserves = properties.rotation_preserves_logits if "rotated" in name else properties.fusion_preserves_logits
    preserves(recipe)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        preserves(recipe)


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


def test_one_layers_mask_for_all_shows_in_the_spectra(monkeypatch):
    def embed(net, *arguments):
        signal, contexts = right(net, *arguments)
        return signal, [contexts[0]] * len(contexts)

    right = Network.embed
    monkeypatch.setattr(Network, "embed", embed)
    with pytest.raises(AssertionError, match="the spectrum before layer 2"):
        spectra_are_the_dense_models(fixed("qwen2", layers=4))
