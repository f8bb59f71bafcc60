"""One part of the model in memory at a time: the same weights bit for bit, and damage told before the work."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from pkgutil import resolve_name

import mistakes as wrong
import pytest
import torch
from family_models import FamilyRecipe
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import Recipe, recipes
from streamed import LLAMA, edit, file_of, run_to, same_weights, saved, snapshot, weights_of

import minislice
from minislice.architecture.network import network
from minislice.large.source import TrainedWeights
from minislice.large.streaming import StreamedSlicer, slice_streamed
from minislice.storage import files
from minislice.storage.files import INDEX

SINGLE = "model.safetensors"


def other_files(folder: Path) -> dict[str, bytes]:
    """Every file that doesn't hold weights."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors" and p.name != INDEX}


def streaming_equals_memory(
    recipe: Recipe, dtype: torch.dtype, shards: bool, options: dict, change=lambda dense: None
) -> None:
    """`change` is called with the model's folder before it is read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dense = saved(recipe, folder, dtype, shards)
        change(dense)
        model, _ = minislice.load(dense)
        minislice.slice_model(model, recipe.tokens(), recipe.mask(), batch_size=3, **options)
        minislice.save(model, folder / "memory")
        report = slice_streamed(dense, recipe.tokens(), folder / "streamed", recipe.mask(), batch_size=3, **options)
        same_weights(folder / "memory", folder / "streamed")
        assert all(tensor.dtype == dtype for tensor in weights_of(folder / "streamed").values())
        assert other_files(folder / "streamed") == other_files(folder / "memory"), "other files differ"
        assert report.widths == model.slicing.widths and report.ranks == model.slicing.ranks
        assert all(torch.equal(a, b) for a, b in zip(report.eigenvalues, model.slicing.eigenvalues, strict=True))
        loaded = minislice.load(folder / "streamed")[0]
        assert minislice.perplexity(loaded, recipe.tokens()) == minislice.perplexity(model, recipe.tokens())
        assert sorted(path.name for path in folder.iterdir()) == ["dense", "memory", "streamed"], "left behind"


OPTIONS = [
    {"slicing": 0.25, "multiple": 1},
    {"discard": 0.05, "multiple": 1, "adapter": "full", "signal": "raw"},
    {"slicing": 0.5, "multiple": 1, "orientation": "random", "tolerance": 0.2},
    {"width": 3, "adapter": "none", "slice_embedding": False, "slice_head": True},
    {"slicing": 0},
    {"width": 5, "neurons": 0.5, "repair": True},
    {"slicing": 0.25, "multiple": 1, "basis": "random"},
    {"slicing": 0.25, "multiple": 1, "basis": "column-norm"},
]
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


FITTED = {"width": 9, "head": "fitted"}
MIXTURE = FamilyRecipe("gpt_oss", heads=4, head_dim=4, hidden=20, padding="left")


@settings(max_examples=12)
@given(recipe=recipes(), dtype=DTYPES, shards=st.booleans(), options=st.sampled_from(OPTIONS))
@example(recipe=Recipe("opt"), dtype=torch.float16, shards=True, options={"width": 9, "head": "tied"})
@example(recipe=Recipe("opt", option=True), dtype=torch.float32, shards=True, options=FITTED)
@example(recipe=Recipe("phi", padding="left"), dtype=torch.float32, shards=False, options=OPTIONS[5])
@example(recipe=Recipe("llama"), dtype=torch.float32, shards=True, options=OPTIONS[6])
@example(recipe=Recipe("llama"), dtype=torch.float32, shards=False, options={**OPTIONS[5], "reconstruct": True})
@example(recipe=MIXTURE, dtype=torch.float32, shards=False, options={**OPTIONS[5], "width": 12})
def test_streaming_equals_memory_bit_for_bit(recipe, dtype, shards, options):
    streaming_equals_memory(recipe, dtype, shards, options)


OWN = {"width": 9, "head": "own"}


@pytest.mark.parametrize(
    ("where", "mistake", "claim", "options"),
    [
        ("streaming.tie_embedding", wrong.nothing_done, "weights differ", {"width": 9}),
        ("streaming.fuse_blocks", wrong.norms_left_out, "weights differ", OWN),
        ("streaming.fuse_embeddings", wrong.nothing_done, "weights differ", OWN),
        ("streaming.fuse_head", wrong.nothing_done, "other tensors", OWN),
        ("streaming.StreamedSlicer.write", wrong.last_layer_left_out, "other tensors", OWN),
        ("source.TrainedWeights.read", wrong.read_in_float16, "weights differ", OWN),
        ("streaming.put_in_place", wrong.copied_into_place, "left behind", OWN),
    ],
)
def test_streaming_property_fails_on(where, mistake, claim, options, monkeypatch):
    where = f"minislice.large.{where}"
    monkeypatch.setattr(where, mistake(resolve_name(where)))
    with pytest.raises(AssertionError, match=claim):
        streaming_equals_memory(Recipe("opt"), torch.float32, True, options)


def test_only_one_part_is_in_memory_at_a_time(tmp_path, monkeypatch):
    present, write = [], StreamedSlicer.write

    def watched(self, index):
        write(self, index)
        names = [name for name, parameter in self.net.model.named_parameters() if not parameter.is_meta]
        present.append({name.split(".")[2] if ".layers." in name else name for name in names})

    monkeypatch.setattr(StreamedSlicer, "write", watched)
    slice_streamed(**run_to(tmp_path, head="own"))
    assert present == [{"model.embed_tokens.weight"}, {"0"}, {"1"}, {"lm_head.weight"}]


# What the files hold


def with_a_head(dense: Path, change: float) -> None:
    """Add a head's matrix to the files of a tied model: the embedding's, plus `change`."""
    [embedding] = network(minislice.load(dense)[0]).model.all_tied_weights_keys.values()
    edit(dense / SINGLE, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding] + change}))


@pytest.mark.parametrize(("family", "change"), [("opt", 1.0), ("gpt2", 1.0), ("gpt_oss", 1.0), ("opt", 0.0)])
def test_a_head_is_tied_only_where_the_files_have_no_other_matrix_for_it(family, change, tmp_path):
    dense = saved(FamilyRecipe(family, layers=1), tmp_path, shards=False)
    with_a_head(dense, change)
    in_memory = network(minislice.load(dense)[0]).head_was_tied
    assert TrainedWeights(dense, "auto").net.head_was_tied == in_memory == (change == 0)


def test_a_head_that_was_trained_apart_is_sliced_as_in_memory():
    apart = lambda dense: with_a_head(dense, 1.0)  # noqa: E731
    streaming_equals_memory(Recipe("opt"), torch.float32, False, {"slicing": 0.25}, apart)


def as_base_model(tensors: dict) -> None:
    """As old checkpoints on the hub are: names without the first word, tensors that no module has any more."""
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def under_the_heads_name(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


@pytest.mark.parametrize(("recipe", "change"), [(Recipe("opt"), as_base_model), (LLAMA, under_the_heads_name)])
def test_weights_under_their_other_names_are_read(recipe, change, tmp_path):
    dense = saved(recipe, tmp_path, shards=False)
    slice_streamed(dense, recipe.tokens(), tmp_path / "expected", width=9)
    edit(dense / SINGLE, change)
    slice_streamed(dense, recipe.tokens(), tmp_path / "found", width=9)
    same_weights(tmp_path / "expected", tmp_path / "found")


# What can't be


def narrower(tensors: dict) -> None:
    name = next(name for name in tensors if "layers.1.mlp.down_proj" in name)
    tensors[name] = tensors[name][:, 1:].contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda dense: os.truncate(sorted(dense.glob("*.safetensors"))[-1], 999), r"model-0.* is damaged or cut off"),
        (lambda dense: edit(file_of(dense, "layers.1.mlp.down_proj"), narrower), r"\[20, 39\].*asks for \[20, 40\]"),
    ],
)
def test_a_damaged_model_is_told_before_anything_is_written(damage, message, tmp_path):
    run = run_to(tmp_path)
    damage(run["source"])
    with pytest.raises(ValueError, match=message):
        slice_streamed(**run)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize("name", ["source", "out"])
def test_a_folder_whose_name_is_not_utf8_is_told_before_the_work(name, tmp_path):
    run = run_to(tmp_path)
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    if name == "source":
        run["source"].rename(strange)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="this name isn't UTF-8; rename the folder"):
        slice_streamed(**{**run, name: strange})
    assert snapshot(tmp_path) == before


def test_too_little_disk_is_told_before_work_starts(tmp_path, monkeypatch):
    run = run_to(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10**4, 10**4))
    monkeypatch.setattr(StreamedSlicer, "slice_parts", lambda *arguments: pytest.fail("work has started"))
    with pytest.raises(ValueError, match=r"needs about .* GB.*the disk has 0\.00 GB"):
        slice_streamed(**run)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_disk_that_fills_up_ends_the_run_with_a_message_and_it_goes_on_later(tmp_path, monkeypatch):
    run = run_to(tmp_path)
    write, calls = files.save_file, []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "save_file", full)
        slice_streamed(**run)
    slice_streamed(**run)
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    same_weights(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_weight_that_is_not_a_number_is_named_and_the_parts_before_it_stay(name, tmp_path):
    """An MLP's by the block and the calibration sequence where the signal shows it, a head's by its name."""
    run = run_to(tmp_path, dataclasses.replace(LLAMA, tied=False))
    good = shutil.copytree(run["source"], tmp_path / "good")
    edit(file_of(run["source"], name), lambda tensors: tensors[name].view(-1)[-1:].fill_(torch.nan))
    told = r"lm_head\.weight has a NaN" if name.startswith("lm_head") else r"behind block 3 .* calibration sequence 0"
    with pytest.raises(ValueError, match=told):
        slice_streamed(**run)
    assert not run["out"].exists() and (tmp_path / ".out.partial" / "model").exists()
    with pytest.raises(ValueError, match=r"settings .model "):  # mended weights are another model
        slice_streamed(**{**run, "source": good})


@pytest.mark.parametrize(
    ("options", "message"), [({"width": 9}, "sliced"), ({"slicing": 0, "adapter": "none", "head": "own"}, "fused")]
)
def test_a_model_that_is_sliced_or_fused_already_is_refused(options, message, tmp_path):
    slice_streamed(saved(LLAMA, tmp_path), LLAMA.tokens(), tmp_path / "out", **options)
    with pytest.raises(ValueError, match=f"{message}.* already|already {message}"):
        slice_streamed(tmp_path / "out", LLAMA.tokens(), tmp_path / "again", width=5)
    assert not (tmp_path / "again").exists()
