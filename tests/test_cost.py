"""What a model costs: FLOPs against torch's own counter, bytes against the file, the clock against itself."""

import copy
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import minislice
from minislice.architecture.modeling import CACHE
from minislice.architecture.network import network
from minislice.measuring.cost import flops_per_token, latency, size_in_bytes, size_in_words, step_seconds, throughput

TOKENS = torch.arange(240).view(8, 30)


def small(name="mini-opt", **options):
    model, _ = minislice.load(name, dtype=torch.float32)
    return minislice.slice_model(model, TOKENS, **{"width": 100, **options}) if options else model


def counted(model):
    """FLOPs of one token, by torch's counter, which knows of eager attention's products."""
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.tensor([[5]]), use_cache=False)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mini-opt", {}),
        ("mini-opt", {"adapter": "full"}),
        ("mini-llama", {"adapter": "low-rank"}),
        ("mini-phi", {"adapter": "none"}),
        ("mini-opt", {"adapter": "none", "head": "tied"}),
        ("mini-opt", {"adapter": "none", "head": "fitted"}),
    ],
    ids=str,
)
def test_flops_are_those_that_torch_counts(name, options):
    model = small(name, **options)
    rope = 0 if name == "mini-opt" else 2 * 16  # positions times frequencies, at most: half a head's 32 columns
    assert 0 <= counted(model) - flops_per_token(model, context=1) <= rope
    more = flops_per_token(model, context=101) - flops_per_token(model, context=1)
    assert more == 100 * 4 * 192 * 4  # 4 layers of 6 heads of 32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "none"}, r"has \d\d\.\d% of the dense model's parameters"),
        ({"width": 191, "head": "own"}, "not smaller: {now:,} parameters against {dense:,}, because .*the head"),
        ({"width": 192, "adapter": "none", "slice_head": True}, "because the head, which shared the embedding"),
        ({"width": 191}, r"because residual adapters take [0-9,]+\.$"),  # beside the tied head
    ],
    ids=str,
)
def test_it_is_said_why_a_model_is_not_smaller(options, said):
    dense, model = minislice.parameters(small()), small(**{"width": 96, **options})
    now = minislice.parameters(model)
    words = size_in_words(model, dense)
    assert re.search(said.format(now=now, dense=dense), words) and ("not smaller" in words) == (now >= dense)


def test_bytes_are_those_of_the_saved_file(tmp_path):
    model = small(adapter="full").half()
    minislice.save(model, tmp_path)
    header = 10_000  # at most, of names and places
    assert size_in_bytes(model) == 2 * minislice.parameters(model)
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - size_in_bytes(model) < header


def test_more_tokens_than_positions_are_refused_before_they_are_made():
    for length in (10**12, 513):
        with pytest.raises(ValueError, match=f"asked for {length} tokens, but the model has 512 positions"):
            step_seconds(small("mini-llama"), length=length)


def test_the_clock_generates_with_the_cache_and_changes_nothing():
    model, lengths = small(), []
    before = copy.deepcopy(model.state_dict())

    def note(module, args, inputs):
        past = inputs.get(CACHE)
        lengths.append((inputs["input_ids"].shape[1], 0 if past is None else past.get_seq_length()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    assert 0 < step_seconds(model, length=5) < 10
    assert lengths[1:] == [(1, past) for past in range(5)]
    assert 0 < latency(model, length=4, repeats=1) < 10_000 and throughput(model, batch_size=4, length=4, repeats=1) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training and not network(model).is_fused
