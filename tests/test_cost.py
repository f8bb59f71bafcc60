"""What a model costs: FLOPs against torch's own counter, the clock against itself; shapes."""

import json
import os
import re
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import slicing_cost
import torch
from commands import document
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture.modeling import CACHE
from minislice.architecture.network import network
from minislice.measuring import timing
from minislice.measuring.cost import flops_per_token, size_in_words, step_seconds
from minislice.measuring.shapes import SHAPES, random_model, sliced_config
from minislice.teaching.small import small_model

CPU = {"dtype": torch.float32, "device": "cpu"}
SHORT = ("--prompt", "4", "--length", "2", "--rounds", "1", "--batch-size", "1", "--quiet")


def small(name="mini-opt", **options):
    model, _ = minislice.load(name, dtype=torch.float32)
    if options:
        minislice.slice_model(model, torch.arange(240).view(8, 30), **{"width": 100, **options})
    return model


def counted(model):
    """FLOPs of one token, by torch's counter, which knows of eager attention's products."""
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([[5]]), use_cache=False)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "options", [{}, {"adapter": "full"}, {"name": "mini-llama", "adapter": "low-rank"}, {"head": "fitted"}], ids=str
)
def test_flops_are_those_that_torch_counts(options):
    model = small(**options)
    rope = 2 * 16 if "name" in options else 0  # positions times frequencies, at most: half a head's 32 columns
    assert 0 <= counted(model) - flops_per_token(model, context=1) <= rope
    more = flops_per_token(model, context=101) - flops_per_token(model, context=1)
    assert more == 100 * 4 * 192 * 4  # 4 layers of 6 heads of 32


def test_the_experts_of_a_token_are_those_that_its_router_chooses_whatever_its_config_calls_them():
    model = small_model("mixtral")
    model.config.num_experts_per_tok = 1  # Aria's is moe_topk; the router still chooses 2
    assert 0 <= counted(model) - flops_per_token(model, context=1) <= 16  # RoPE's own product


def test_it_is_said_why_a_model_is_not_smaller():
    for said, options in {
        r"has \d\d\.\d% of the dense model's parameters": {"width": 96, "adapter": "none"},
        r"not smaller: [0-9,]+ parameters against [0-9,]+, because .*the head": {"width": 191, "head": "own"},
        r"not smaller.* because residual adapters take [0-9,]+\.$": {"width": 191},  # beside the tied head
    }.items():
        assert re.search(said, size_in_words(small(**options), minislice.parameters(small())))


def test_a_head_that_can_not_stay_tied_is_not_advised_to():
    model, advice = small(), 'head="tied"'
    assert advice in size_in_words(minislice.fuse(small()), 0)
    model.model.decoder.embed_tokens.__class__ = type("Scaled", (torch.nn.Embedding,), {})
    assert advice not in size_in_words(minislice.fuse(model), 0)


def test_the_clock_generates_with_the_cache_and_changes_nothing():
    model, lengths, before = small(), [], small().state_dict()

    def note(module, args, inputs):
        past = inputs.get(CACHE)
        lengths.append((inputs["input_ids"].shape[1], 0 if past is None else past.get_seq_length()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    assert 0 < step_seconds(model, length=5) < 10
    with pytest.raises(ValueError, match="length must be a whole number of at least 1, got 0"):
        step_seconds(model, length=0)
    assert lengths[1:] == [(1, past) for past in range(5)]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training and not network(model).is_fused


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mini-opt", {"adapter": "full", "head": "tied"}),
        ("mini-llama", {"adapter": "none", "head": "own"}),
        ("mini-phi", {"adapter": "low-rank"}),
        ("mini-phi", {"adapter": "low-rank", "basis": "random"}),  # which the mean isn't orthogonal to
    ],
)
def test_a_shape_is_that_of_a_model_that_was_sliced(name, options):
    model, options = small(name), {"slicing": 0.25, **options}
    pretended = random_model(sliced_config(model.config, **options), **CPU)
    tokens = torch.randint(300, (8, 64), generator=torch.Generator().manual_seed(0))
    sliced = minislice.slice_model(model, tokens, **options)
    shapes, expected = (
        {key.removeprefix("base."): parameter.shape for key, parameter in each.named_parameters()}
        for each in (pretended, sliced)
    )
    assert shapes == expected


def test_the_papers_shapes_have_the_papers_sizes():
    """Billions of parameters, as the models are named; Phi-2 has 2.7 or, head and embeddings counted, 2.78."""
    sizes = {"opt-125m": 0.125, "opt-1.3b": 1.3, "opt-6.7b": 6.7, "opt-66b": 66, "llama-2-7b": 6.7, "llama-2-70b": 69}
    for name, billions in (sizes | {"llama-2-13b": 13, "opt-13b": 13, "opt-30b": 30, "phi-2": 2.8}).items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(SHAPES[name])
        assert abs(minislice.parameters(model) / 1e9 / billions - 1) < 0.05, name


def test_everyone_has_a_turn_in_every_round_the_first_does_not_count_and_a_ratio_is_taken_within_its_round():
    turns = []
    seconds = timing.in_turns({"a": "A", "b": "B"}, lambda work: turns.append(work) or len(turns), 3)
    assert turns == ["A", "B"] * 4 and seconds == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert timing._milliseconds([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == timing.Pair(2000, 1000, 0.5)


@pytest.mark.parametrize("room", [1, 3, 1000])
def test_the_largest_batch_fits_an_eighth_more_does_not_and_the_search_ends(room):
    tried = []
    size = timing.largest_batch(lambda size: tried.append(size) or size <= room)
    assert size <= room < size + max(1, size // 8) + 1 and len(tried) <= 16
    with pytest.raises(ValueError, match="not even one"):
        timing.largest_batch(lambda size: False)


def test_a_model_that_made_room_comes_back_though_not_even_one_sequence_fits(monkeypatch):
    monkeypatch.setattr(timing, "step_seconds", Mock(side_effect=torch.OutOfMemoryError))
    other = SimpleNamespace(device="its device", to=(moves := []).append)
    with pytest.raises(ValueError, match="not even one"):
        timing._largest_throughput(None, other, 4, 1)
    assert moves == ["cpu", "its device"]


def test_peak_memory_sees_what_was_held_and_let_go():
    with timing.peak_memory(torch.device("cpu")) as peak:
        held = torch.ones(400_000_000 // 4)  # more than any hole in the heap of a process that ran other tests
        del held
    is_told = os.access("/proc/self/clear_refs", os.W_OK)
    assert 350e6 < peak.added < 450e6 if is_told else peak.before is None


def test_table_12s_total_is_the_products_without_the_adapters_and_two_of_one_name_are_not_added():
    models = {"full": random_model(sliced_config(small("mini-llama").config, slicing=0.25, adapter="full"), **CPU)}
    products = timing.product_milliseconds(models, tokens=8, repeats=3)["full"]
    adapter, total = products.pop("adapter"), products.pop("total")
    assert set(products) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert total == pytest.approx(sum(products.values())) and adapter > 0

    models = {"dense": small_model("gpt2")}
    models["dropped"] = minislice.slice_model(small_model("gpt2"), torch.ones(1, 4).long(), slicing=0, drop=[3])
    whole, without_mlp = timing.product_milliseconds(models, tokens=8, repeats=1).values()
    assert set(whole) == {"c_attn", "attention.c_proj", "c_fc", "mlp.c_proj", "total"}
    assert set(whole) - set(without_mlp) == {"c_fc", "mlp.c_proj"}


def test_the_command_measures_every_level_and_form(run):
    command = ["cost", "mini-phi", "--slicing", "0.2,0.3", "--adapter", "full,none", *SHORT]
    rows = document(run(*command, "--json")[1])["rows"]
    assert [row["variant"] for row in rows] == ["20%, full", "20%, none", "30%, full", "30%, none"]
    sizes = [row["parameters"]["sliced"] for row in rows]
    assert sizes[0] > sizes[1] > sizes[3] and rows[3]["FLOPs a token"]["ratio"] < 1
    for quantity in ("prefill, ms", "decoding, ms a token", "tokens a second"):
        assert min(rows[0][quantity].values()) > 0
    blocks = run("cost", "mini-phi", "--slicing", "0.2", "--adapter", "full", *SHORT, "--products", 1)[1].split("\n\n")
    assert blocks[1].startswith("20%, full  ") and f"{sizes[0]:,}" in blocks[1] and "total, ms" in blocks[1]


def test_the_command_takes_a_sliced_models_folder_without_its_weights(run, tmp_path):
    model = small(adapter="low-rank", head="own")
    model.save_pretrained(tmp_path / "sliced")
    (tmp_path / "sliced" / "model.safetensors").unlink()
    (row,) = document(run("cost", tmp_path / "sliced", *SHORT, "--json")[1])["rows"]
    assert row["parameters"]["sliced"] == minislice.parameters(model)
    assert row["parameters"]["dense"] == minislice.parameters(small())  # its head was tied


def test_the_script_of_slicings_cost_counts_the_models_dtype_and_ends_where_no_memory_is_told(monkeypatch, capsys):
    given = "--shape tiny --dtype bfloat16 --rounds 2 --samples 2 --seqlen 32 --beyond repair --json --threads"
    monkeypatch.setattr("sys.argv", ["slicing_cost.py", *given.split(), str(torch.get_num_threads())])
    monkeypatch.setattr(slicing_cost, "peak_memory", lambda device: nullcontext(timing.Peak()))
    slicing_cost.main()
    result = json.loads(capsys.readouterr().out)
    assert result["signal of the calibration set at full width, MiB"] == 2 * 32 * 64 * 2 / 2**20
    assert result["beyond, peak memory, MiB"] == {"repair": None}
