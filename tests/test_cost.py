"""What a model costs: FLOPs against torch's own counter, bytes against the file, the clock against itself."""

import copy
import re

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

import minislice
from minislice.architecture.modeling import CACHE
from minislice.architecture.network import network
from minislice.corpus.embedded import EMBEDDED
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
        *((name, {}) for name in EMBEDDED),
        *(
            ("mini-opt", {"adapter": "full"}),
            ("mini-llama", {"adapter": "low-rank"}),
            ("mini-phi", {"adapter": "none"}),
        ),
    ],
    ids=str,
)
def test_flops_are_those_that_torch_counts(name, options):
    model = small(name, **options)
    rope = 0 if name == "mini-opt" else 2 * 16  # positions times frequencies, at most: half a head's 32 columns
    assert 0 <= counted(model) - flops_per_token(model, context=1) <= rope


@pytest.mark.parametrize("head", ["tied", "fitted"])
def test_flops_of_a_head_that_shares_its_matrix_are_counted(head):
    model = small(adapter="none", head=head)
    assert counted(model) == flops_per_token(model, context=1)


def test_flops_of_another_model_differ():
    assert counted(small(adapter="none")) != flops_per_token(small(adapter="full"), context=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "none"}, r"has \d\d\.\d% of the dense model's parameters"),
        ({"width": 191, "head": "own"}, "not smaller: {now:,} parameters against {dense:,}, because .*the head"),
        (
            {"width": 192, "adapter": "none", "slice_head": True},
            "because the head, which shared the embedding",
        ),
        ({"width": 191}, r"because residual adapters take [0-9,]+\.$"),  # beside the tied head
    ],
    ids=str,
)
def test_it_is_said_why_a_model_is_not_smaller(options, said):
    dense, model = minislice.parameters(small()), small(**{"width": 96, **options})
    now = minislice.parameters(model)
    words = size_in_words(model, dense)
    assert re.search(said.format(now=now, dense=dense), words) and ("not smaller" in words) == (now >= dense)


def test_attention_grows_with_the_context():
    model = small()
    more = flops_per_token(model, context=101) - flops_per_token(model, context=1)
    assert more == 100 * 4 * 192 * 4  # 4 layers of 6 heads of 32


def test_bytes_are_those_of_the_saved_tensors(tmp_path):
    model = small(adapter="full").half()
    minislice.save(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(name).numel() * 2 for name in file.keys())  # noqa: SIM118 - not a dict
    assert size_in_bytes(model) == stored == 2 * minislice.parameters(model)


def test_more_tokens_than_positions_are_refused_before_they_are_made():
    for length in (10**12, 513):
        with pytest.raises(ValueError, match=f"asked for {length} tokens, but the model has 512 positions"):
            step_seconds(small("mini-llama"), length=length)


def test_measuring_time_changes_nothing_and_longer_takes_longer():
    model = small()
    before = copy.deepcopy(model.state_dict())
    assert 0 < step_seconds(model, length=4) < 10
    assert 0 < latency(model, length=4, repeats=1) < 10_000
    assert throughput(model, batch_size=4, length=4, repeats=1) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training and not network(model).is_fused


def test_every_step_of_the_clock_generates_with_the_cache():
    model, lengths = small(), []

    def note(module, args, inputs):
        past = inputs.get(CACHE)
        lengths.append((inputs["input_ids"].shape[1], 0 if past is None else past.get_seq_length()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    step_seconds(model, length=5)
    assert lengths[1:] == [(1, past) for past in range(5)]
