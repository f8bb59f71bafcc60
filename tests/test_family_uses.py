"""What works for a LLaMA works for other families too: a static cache, counting, recovery, the limits of a sequence."""

import argparse

import pytest
import torch
from family_models import REPRESENTATIVES, fixed
from properties import logits, relative_error
from test_cost import counted

import minislice
from minislice.architecture.modeling import SlicedForCausalLM
from minislice.architecture.network import network
from minislice.command.inputs import seqlen_of
from minislice.measuring.cost import flops_per_token
from minislice.recovery.training import lora_targets
from minislice.teaching.small import small_model


def sliced(family: str, variant: int, dtype: torch.dtype):
    recipe = fixed(family, variant, layers=2)
    return recipe, minislice.slice_model(recipe.model().to(dtype), recipe.tokens(), width=9)


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES)
def test_a_static_cache_generates_what_the_usual_one_does(family, variant):
    recipe, model = sliced(family, variant, torch.float64)
    model, prompt = SlicedForCausalLM.wrap(model), recipe.tokens(1)[:, :9]
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    usual, static = (model.generate(prompt, cache_implementation=name, **options) for name in (None, "static"))
    assert torch.equal(static.sequences, usual.sequences) and static.sequences.shape[1] == 13
    error = relative_error(torch.stack(static.logits), torch.stack(usual.logits))
    assert error < max(1e-6 if recipe.softmax_in_float32 else 1e-10, recipe.rounding)


@pytest.mark.parametrize(("family", "variant"), [("gpt2", 0), ("phi3", 1), ("qwen2_moe", 0), ("gpt_oss", 0)])
def test_flops_are_those_that_torch_counts_and_lora_is_trained_and_merged(family, variant):
    recipe, model = sliced(family, variant, torch.float32)
    assert 0 <= counted(model) - flops_per_token(model, context=1) <= 8  # of RoPE
    before, targets = logits(model, recipe.tokens(1)), len(lora_targets(model))
    minislice.recover(model, recipe.tokens(), steps=2, rank=2, learning_rate=1e-2, batch_size=2)
    assert targets >= 2 * len(network(model).layers)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert relative_error(logits(model, recipe.tokens(1)), before) > 1e-4


def test_a_model_without_a_limit_gets_sequences_of_the_usual_length(tmp_path):
    """Bloom's config has no max_position_embeddings."""
    minislice.slice_model(small_model("bloom"), torch.arange(40).view(2, 20), width=16).save_pretrained(tmp_path)
    arguments = argparse.Namespace(model="sliced", seqlen=None)
    assert seqlen_of(arguments, small_model("bloom")) == seqlen_of(arguments, minislice.load(tmp_path)[0]) == 2048
