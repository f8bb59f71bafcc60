"""One part of the model in memory at a time: the same weights bit for bit, and damage told before the work."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mistakes import wrong
from models import Recipe, recipes
from streamed import LLAMA, edit, file_of, logits, run_to, same_weights, saved, weights_of

import minislice
from minislice.fusion import bare
from minislice.large.streaming import StreamedSlicer, slice_streamed
from minislice.storage.files import INDEX


def other_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors" and p.name != INDEX}


def streaming_equals_memory(
    recipe: Recipe, dtype: torch.dtype, shards: bool, options: dict, change=lambda tensors: None
) -> None:
    """`change` edits the tensors of a model in one file before it is read."""
    with tempfile.TemporaryDirectory() as name:
        folder, tokens, mask = Path(name), recipe.tokens(), recipe.mask()
        dense = saved(recipe, folder, dtype, shards)
        if not shards:
            edit(dense / "model.safetensors", change)
        model, _ = minislice.load(dense)
        minislice.slice_model(model, tokens, mask, batch_size=3, **options)
        minislice.save(model, folder / "memory")
        report = slice_streamed(dense, tokens, folder / "streamed", mask, batch_size=3, **options)
        same_weights(folder / "memory", folder / "streamed")
        assert all(tensor.dtype == dtype for tensor in weights_of(folder / "streamed").values())
        assert other_files(folder / "streamed") == other_files(folder / "memory"), "other files differ"
        assert report.widths == model.slicing.widths and report.ranks == model.slicing.ranks
        assert all(torch.equal(a, b) for a, b in zip(report.eigenvalues, model.slicing.eigenvalues, strict=True))
        assert torch.equal(logits(minislice.load(folder / "streamed")[0], tokens), logits(model, tokens))
        assert sorted(path.name for path in folder.iterdir()) == ["dense", "memory", "streamed"], "left behind"


FEW_NEURONS = {"width": 9, "neurons": [16, 0], "drop": [2]}
REPAIRED = {"width": 5, "neurons": 0.5, "repair": True}
OPTIONS = [
    {"slicing": 0},
    {"discard": 0.05, "multiple": 1, "adapter": "full", "signal": "raw"},
    {"slicing": 0.5, "multiple": 1, "orientation": "random", "tolerance": 0.2},
    {"width": 3, "adapter": "none", "slice_embedding": False, "slice_head": True},
    {"slicing": 0.25, "multiple": 1, "basis": "column-norm"},
    REPAIRED,
]
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
MIXTURE = Recipe("gpt_oss", heads=4, head_dim=4, hidden=20, padding="left")


@settings(max_examples=5)
@given(recipe=recipes(), dtype=DTYPES, shards=st.booleans(), options=st.sampled_from(OPTIONS))
@example(recipe=Recipe("opt"), dtype=torch.float16, shards=True, options=FEW_NEURONS)
@example(recipe=Recipe("opt", variant=2), dtype=torch.float32, shards=True, options={"width": 9, "head": "fitted"})
@example(recipe=Recipe("llama"), dtype=torch.float32, shards=False, options={**REPAIRED, "reconstruct": True})
@example(recipe=MIXTURE, dtype=torch.float32, shards=False, options={**FEW_NEURONS, "drop": [], "repair": True})
def test_streaming_equals_memory_bit_for_bit(recipe, dtype, shards, options):
    streaming_equals_memory(recipe, dtype, shards, options)


def read_in_float16(right, self, root, device):
    right(self, root, device)
    for parameter in root.parameters():
        parameter.data = parameter.data.half().to(parameter.dtype)


MISTAKES = {  # where, the wrong version, and the claim that fails
    "fuse_blocks": (
        lambda right, net, blocks: [setattr(b, "norm", bare(b.norm, net)) for b in blocks],
        "weights differ",
    ),
    "StreamedSlicer.write": (lambda right, self, index: index == 2 or right(self, index), "other tensors"),
    "TrainedWeights.read": (read_in_float16, "weights differ"),
    "put_in_place": (lambda right, new, out: [shutil.copytree(new, f"{out}-1"), right(new, out)], "left behind"),
}


@pytest.mark.parametrize("where", MISTAKES)
def test_streaming_property_fails_on_a_mistake_in(where, monkeypatch):
    mistake, claim = MISTAKES[where]
    where = f"minislice.large.streaming.{where}"
    monkeypatch.setattr(where, wrong(mistake)(resolve_name(where)))
    with pytest.raises(AssertionError, match=claim):
        streaming_equals_memory(Recipe("opt"), torch.float32, True, {"width": 9, "head": "own"})


def test_only_one_part_is_in_memory_at_a_time(tmp_path, monkeypatch):
    present, write = [], StreamedSlicer.write

    def watched(self, index):
        write(self, index)
        names = [name for name, parameter in self.net.model.named_parameters() if not parameter.is_meta]
        present.append({name.split(".")[2] if ".layers." in name else name for name in names})

    monkeypatch.setattr(StreamedSlicer, "write", watched)
    slice_streamed(**run_to(tmp_path, head="own"))
    assert present == [{"model.embed_tokens.weight"}, {"0"}, {"1"}, {"lm_head.weight"}]


def a_head_of_its_own(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"] + 1


def under_the_heads_name(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.decoder.embed_tokens.weight")


OLD = {"position_ids": torch.arange(8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
OLD |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.rotary_emb.inv_freq": torch.ones(4)}


def as_base_model(tensors: dict) -> None:
    """As old checkpoints on the hub are: names without the first word, tensors that no module has any more."""
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)
    tensors.update(OLD)


@pytest.mark.parametrize(
    ("family", "change"), [("opt", a_head_of_its_own), ("opt", under_the_heads_name), ("gpt2", as_base_model)]
)
def test_files_are_read_as_transformers_reads_them(family, change):
    streaming_equals_memory(Recipe(family), torch.float32, False, {"width": 9}, change)


def test_too_little_disk_is_told_before_work_starts(tmp_path, monkeypatch):
    run = run_to(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10**4, 10**4))
    monkeypatch.setattr(StreamedSlicer, "slice_parts", lambda *arguments: pytest.fail("work has started"))
    with pytest.raises(ValueError, match=r"needs about .* GB.*the disk has 0\.00 GB"):
        slice_streamed(**run)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_weight_that_is_not_a_number_is_told_where_no_signal_shows_it(tmp_path):
    run, name = run_to(tmp_path, replace(LLAMA, tied=False)), "lm_head.weight"
    edit(file_of(run["source"], name), lambda tensors: tensors[name].view(-1)[-1:].fill_(torch.nan))
    with pytest.raises(ValueError, match=f"{name} has a NaN"):
        slice_streamed(**run)
    assert not run["out"].exists()


SLICED = Path(__file__).with_name("format1") / "opt"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "auto"}, "one device"), ({"fisher": True}, "memory"), ({"source": SLICED}, "sliced already")],
)
def test_what_can_not_be_streamed_is_refused(options, message, tmp_path):
    run = {"source": "mini-opt", "tokens": LLAMA.tokens(), "out": tmp_path / "sliced", "neurons": 0.5}
    with pytest.raises(ValueError, match=message):
        slice_streamed(**{**run, **options})
    assert not list(tmp_path.iterdir())
