"""Each generalisation is needed: without it, or done wrong, a property of its family fails."""

from dataclasses import replace

import properties
import pytest
import torch
from family_models import fixed

from minislice.architecture.families import FAMILIES
from minislice.architecture.linears import ExpertsReader, ExpertsWriter
from minislice.architecture.network import Network


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


def one_layers_context_for_all(patch):
    def embed(net, *arguments):
        signal, contexts = right(net, *arguments)
        return signal, [contexts[0]] * len(contexts)

    right = Network.embed
    patch.setattr(Network, "embed", embed)


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
    "one layer's mask for all, projected": (one_layers_context_for_all, "qwen2", {}),
    "one expert not rotated": (last_expert_left_as_it_was(ExpertsWriter), "mixtral", {}),
}
FACTS = {"rotated": properties.rotation_preserves_logits, "projected": properties.slicing_is_projection}  # by last word


@pytest.mark.parametrize("name", MISTAKES)
def test_a_property_fails_with(name, monkeypatch):
    plant, family, fields = MISTAKES[name]
    recipe = fixed(family, eps=1e-3, **fields)
    fact = FACTS.get(name.split()[-1], properties.fusion_preserves_logits)
    fact(recipe)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        fact(recipe)
