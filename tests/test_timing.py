"""What inference costs: shapes against models that were really sliced, turns, the largest batch, memory."""

import pytest
import torch
from commands import document
from transformers import AutoModelForCausalLM

import minislice
from minislice.measuring import timing
from minislice.measuring.shapes import SHAPES, random_model, sliced_config

CPU = {"dtype": torch.float32, "device": "cpu"}
SHORT = ("--prompt", "4", "--length", "2", "--rounds", "1", "--batch-size", "1", "--quiet")


def parameters_of_shape(config):
    with torch.device("meta"):
        return minislice.parameters(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("name", "slice_head", "adapter"),
    [("mini-opt", False, "full"), ("mini-llama", True, "none"), ("mini-phi", False, "low-rank")],
)
def test_a_shape_is_that_of_a_model_that_was_sliced(name, adapter, slice_head):
    model, _ = minislice.load(name, dtype=torch.float32)
    config, options = model.config, {"slicing": 0.25, "adapter": adapter, "slice_head": slice_head}
    tokens = torch.randint(300, (8, 64), generator=torch.Generator().manual_seed(0))
    sliced = minislice.slice_model(model, tokens, **options)
    shapes = [
        {name.removeprefix("base."): tuple(p.shape) for name, p in model.named_parameters()}
        for model in (sliced, *(random_model(sliced_config(config, **o), **CPU) for o in (options, {"slicing": 0.3})))
    ]
    assert shapes[0] == shapes[1] != shapes[2]


def test_the_papers_shapes_have_the_papers_sizes():
    """Billions of parameters, as the models are named; Phi-2 has 2.7 or, head and embeddings counted, 2.78."""
    sizes = {"opt-125m": 0.125, "opt-1.3b": 1.3, "opt-6.7b": 6.7, "opt-66b": 66, "llama-2-7b": 6.7, "llama-2-70b": 69}
    for name, billions in (sizes | {"llama-2-13b": 13, "opt-13b": 13, "opt-30b": 30, "phi-2": 2.8}).items():
        assert abs(parameters_of_shape(SHAPES[name]) / 1e9 / billions - 1) < 0.05, name


@pytest.mark.slow
def test_llama_70b_at_30_percent_has_the_papers_51_billion_parameters_between_no_adapters_and_full_ones():
    none, full = (
        parameters_of_shape(sliced_config(SHAPES["llama-2-70b"], slicing=0.3, adapter=adapter))
        for adapter in ("none", "full")
    )
    assert none < 51.6e9 < full < 1.05 * 51.6e9


def test_a_width_that_the_spectrum_decides_has_no_shape():
    with pytest.raises(ValueError, match="give slicing or width"):
        sliced_config(SHAPES["opt-125m"], discard=0.1)


def test_everyone_has_a_turn_in_every_round_the_first_does_not_count_and_a_ratio_is_taken_within_its_round():
    turns = []
    seconds = timing.in_turns({name: lambda name=name: turns.append(name) or len(turns) for name in "ab"}, 3)
    assert turns == ["a", "b"] * 4 and seconds == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert timing.median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 0.5


@pytest.mark.parametrize("room", [1, 2, 3, 7, 100, 512, 1000])
def test_the_largest_batch_fits_and_an_eighth_more_does_not(room):
    tried = []
    size = timing.largest_batch(lambda size: tried.append(size) or size <= room)
    assert size <= room < size + max(1, size // 8) + 1 and len(tried) <= 16


def test_the_search_for_the_largest_batch_ends():
    assert timing.largest_batch(lambda size: True, limit=64) == 64
    with pytest.raises(ValueError, match="not even one"):
        timing.largest_batch(lambda size: False)


def test_peak_memory_sees_what_was_held_and_let_go():
    with timing.peak_memory(torch.device("cpu")) as peak:
        held = torch.ones(400_000_000 // 4)  # more than any hole in the heap of a process that ran other tests
        del held
    if peak.before is None:
        pytest.skip("this system doesn't say")
    assert 350e6 < peak.added < 450e6


def test_table_12s_total_is_the_products_without_the_adapters():
    config = minislice.load("mini-llama")[0].config
    models = {"full": random_model(sliced_config(config, slicing=0.25, adapter="full"), **CPU)}
    products = timing.product_milliseconds(models, tokens=8, repeats=3)["full"]
    adapter, total = products.pop("adapter"), products.pop("total")
    assert set(products) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert total == pytest.approx(sum(products.values())) and adapter > 0


def test_the_command_measures_every_level_and_form(run):
    command = ["cost", "mini-phi", "--slicing", "0.2,0.3", "--adapter", "full,none", *SHORT]
    rows = document(run(*command, "--json")[1])["rows"]
    assert [row["variant"] for row in rows] == ["20%, full", "20%, none", "30%, full", "30%, none"]
    sizes = [row["parameters"]["sliced"] for row in rows]
    assert sizes[0] > sizes[1] > sizes[3] and rows[3]["FLOPs a token"]["ratio"] < 1
    for quantity in ("prefill, ms", "decoding, ms a token", "tokens a second"):
        assert min(rows[0][quantity].values()) > 0
    blocks = run(*command, "--products", 1)[1].split("\n\n")[1:]
    assert [block.split("  ")[0] for block in blocks] == [row["variant"] for row in rows]
    assert f"{sizes[0]:,}" in blocks[0] and "total, ms" in blocks[0]


def test_the_command_takes_a_sliced_models_folder_without_its_weights(run, tmp_path):
    model, _ = minislice.load("mini-opt", dtype=torch.float32)
    minislice.slice_model(model, torch.arange(240).view(8, 30), width=100).save_pretrained(tmp_path / "sliced")
    (tmp_path / "sliced" / "model.safetensors").unlink()
    (row,) = document(run("cost", tmp_path / "sliced", *SHORT, "--json")[1])["rows"]
    assert row["parameters"]["sliced"] == minislice.parameters(model)
