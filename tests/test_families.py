"""Small random models of transformers' own classes: what holds for OPT and LLaMA holds for all families.

Fusing, rotating and slicing are tried on every family, all else on those that stand for a generalisation of the table.
"""

import argparse
import itertools

import properties
import pytest
import torch
from models import CASES, FAMILIES, REPRESENTATIVES, fixed
from test_cost import counted
from test_export import exported
from test_streaming import streaming_equals_memory
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture.families import FAMILIES as TABLE
from minislice.architecture.family import StockNorm
from minislice.architecture.mixtures import able_to_compute
from minislice.architecture.modeling import SlicedForCausalLM
from minislice.architecture.network import network
from minislice.command.inputs import seqlen_of
from minislice.measuring.cost import flops_per_token
from minislice.recovery.training import lora_targets
from minislice.teaching.small import small_model

stand_for_all = pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES)


def test_every_family_of_the_table_is_tried():
    assert set(FAMILIES) == set(TABLE)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_fusing_rotating_and_slicing_compute_what_they_must(family, variant):
    # In float64, Bloom's own mask overflows the float32 of its softmax, and left padding makes the dense model NaN.
    recipe = fixed(family, variant, eps=1e-3, padding="right" if family == "bloom" else "left")
    properties.fusion_preserves_logits(recipe)
    properties.rotation_preserves_logits(recipe)
    properties.rotation_preserves_logits(recipe, per_block=True)
    raw = {"signal": "raw", "adapter": "low-rank", "slice_head": True}
    properties.slicing_is_projection(recipe, **(raw if variant else {}))


@stand_for_all
def test_a_tied_head_stays_tied_unless_a_norm_stands_after_the_embedding(family, variant):
    """That norm changes what the embedding gives, and not what the head multiplies by."""
    recipe = fixed(family, variant, tied=True)
    if TABLE[family].embedding_norm:
        with pytest.raises(ValueError, match="a norm stands after the embedding"):
            properties.sliced(recipe, head="tied")
        report = minislice.slice_model(recipe.model(), recipe.tokens(), width=8).slicing
        assert report.options.head == "own" and report.widths[0] == 8
    else:
        properties.tied_head_is_exact(recipe)


@pytest.mark.parametrize(("family", "variant"), [*REPRESENTATIVES, ("gptj", 0)])
def test_streaming_and_saving_change_no_bit(family, variant):
    """GPT-J's positions are computed in the default dtype; from_pretrained computes them in float32 for all weights."""
    recipe = fixed(family, variant, tied=variant == 0)
    dtype = torch.bfloat16 if variant or family == "gptj" else torch.float32
    last = len(network(recipe.model()).blocks) - 1
    narrowed = {"width": 6, "adapter": "none", "slice_head": True, "drop": [last], "neurons": 0.3, "multiple": 1}
    options = narrowed if variant else {"slicing": 0.25, "multiple": 1, "neurons": 0.5}
    streaming_equals_memory(recipe, dtype, True, options)


@stand_for_all
def test_a_sliced_model_returns_what_the_dense_class_returns_and_generates_with_a_cache(family, variant):
    recipe = fixed(family, variant)
    dropped = 2 * network(recipe.model()).blocks_per_layer  # the last layer's attention
    properties.cached_generation_equals_uncached(recipe, width=8, drop=[dropped], neurons=0.5, multiple=4)
    properties.cached_generation_equals_uncached(recipe, width=8, slice_embedding=False, slice_head=True)
    wrapped = SlicedForCausalLM.wrap(properties.sliced(recipe, width=9))
    properties.cached_generation_equals_uncached(recipe, wrapped, cache="static")
    dense, sliced = recipe.model(), properties.sliced(recipe, slicing=0)
    names = ["attentions", "hidden_states"] + ["router_logits"] * hasattr(dense.config, "output_router_logits")
    asked = {"input_ids": recipe.tokens(1), **{f"output_{name}": True for name in names}}
    for model in (dense, sliced):
        model.config._attn_implementation = "eager"
    expected, wrapped = dense(**asked), SlicedForCausalLM.wrap(sliced)
    for found, name in itertools.product([sliced(**asked), wrapped(**asked)], names):
        assert [x.shape for x in found[name]] == [x.shape for x in expected[name]], name
        if name != "hidden_states":  # which stand in another basis
            assert properties.relative_error(torch.cat(found[name]), torch.cat(expected[name])) < 1e-4
    wrapped.config.output_hidden_states = True
    assert len(wrapped(input_ids=recipe.tokens(1)).hidden_states) == recipe.layers + 1


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_what_a_config_asks_for_is_returned_after_slicing_too(family):
    recipe = fixed(family)
    model, ids = recipe.model(), recipe.tokens()
    names = [name for name in ("hidden_states", "router_logits") if hasattr(model.config, f"output_{name}")]
    for name in names:
        setattr(model.config, f"output_{name}", True)
    minislice.delete_layers(model, ids, layers=1)
    assert all(len(model(ids, labels=ids)[name]) >= recipe.layers - 1 for name in names)
    minislice.slice_model(model, ids, slicing=0, neurons=0.5, multiple=1, fisher=True)
    assert all(len(model(ids, labels=ids)[name]) >= recipe.layers - 1 for name in names)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("qwen2_moe", torch.float32), ("mixtral", torch.float16), ("gpt_oss", torch.bfloat16), ("gpt_oss", torch.float64)],
    ids=str,
)
def test_mixtures_with_fewer_neurons_compute_in_every_dtype(family, dtype, tmp_path):
    """Transformers' product of all experts at once takes widths of a multiple of 16 bytes, and no float64."""
    recipe = fixed(family, hidden=32)
    model = able_to_compute(AutoModelForCausalLM.from_config(recipe.config(), dtype=dtype)).eval()
    ids = recipe.tokens()
    properties.approximate_adapters_carry_close_directions_whole(recipe)
    minislice.delete_neurons(model, ids, neurons=0.5, multiple=1)
    assert all(block.neurons * dtype.itemsize % 16 == 0 for block in network(model).blocks if block.is_mixture)
    model.save_pretrained(tmp_path / "fewer")
    loaded = minislice.load(tmp_path / "fewer")[0]
    assert model(ids).logits.isfinite().all() and torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.generate(ids[:1, :5], max_new_tokens=2).shape == (1, 7)


EXPORTED = [(family, 0) for family in FAMILIES] + [("phi", 1), ("cohere", 1), ("ministral", 1), ("smollm3", 1)]
SHORTENED = [("phi", 0), ("ministral", 0), ("smollm3", 0), ("qwen2_moe", 1), ("gpt_oss", 0)]
EXPORTS = [*((*case, False) for case in EXPORTED), *((*case, True) for case in SHORTENED)]


@pytest.mark.parametrize(("family", "variant", "drop"), EXPORTS)
def test_an_export_computes_the_same_in_transformers_own_class_or_says_why_it_can_not(family, variant, drop, tmp_path):
    """Also without a layer: attention and RoPE of the layers after it must not become those of their new numbers."""
    recipe = fixed(family, variant, eps=1e-3, hidden=20, layers=3 + drop)
    model, count = recipe.model().float(), len(network(recipe.model()).layers[0].blocks)
    dropped = {"drop": range(2 * count, 3 * count), "neurons": 0.5, "multiple": 4} if drop else {}
    minislice.slice_model(model, recipe.tokens(), width=8, adapter="none", slice_head=True, **dropped)
    mixed = drop and (family, variant) == ("qwen2_moe", 1)
    is_stock = isinstance(TABLE[family].stock_norm, StockNorm) and (family, variant) not in [("phi", 1), ("cohere", 1)]
    if mixed or not is_stock:
        why = "dense or mixtures by their number" if mixed else "can't be exported|can't export: .* inside a branch"
        with pytest.raises(ValueError, match=why):
            minislice.export(model, tmp_path / "stock")
        return
    accuracy = 1e-2 if network(model).has_experts else 1e-5  # between two experts a rounded norm may decide
    assert exported(model, recipe.tokens(1), tmp_path / "stock", accuracy).config.num_hidden_layers == 3


@pytest.mark.parametrize(("family", "variant"), [("gpt2", 0), ("phi3", 1), ("qwen2_moe", 0), ("gpt_oss", 0)])
def test_flops_are_those_that_torch_counts_and_lora_is_trained_and_merged(family, variant):
    recipe = fixed(family, variant, layers=2)
    model = minislice.slice_model(recipe.model().float(), recipe.tokens(), width=9)
    assert 0 <= counted(model) - flops_per_token(model, context=1) <= 8  # of RoPE
    before, targets = properties.logits(model, recipe.tokens(1)), len(lora_targets(model))
    minislice.recover(model, recipe.tokens(), steps=2, rank=2, learning_rate=1e-2, batch_size=2)
    assert targets >= 2 * len(network(model).layers)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert properties.relative_error(properties.logits(model, recipe.tokens(1)), before) > 1e-4


def test_a_model_without_a_limit_gets_sequences_of_the_usual_length(tmp_path):
    """Bloom's config has no max_position_embeddings."""
    minislice.slice_model(small_model("bloom"), torch.arange(40).view(2, 20), width=16).save_pretrained(tmp_path)
    arguments = argparse.Namespace(model="sliced", seqlen=None)
    assert seqlen_of(arguments, small_model("bloom")) == seqlen_of(arguments, minislice.load(tmp_path)[0]) == 2048
