"""One part of the model in memory at a time: the same weights bit for bit, after any interruption, in any process."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

import mistakes as wrong
import pytest
import torch
from family_models import FAMILIES, FamilyRecipe
from hypothesis import example, given
from hypothesis import strategies as st
from models import Recipe, recipes
from safetensors.torch import load_file, save_file
from streamed import (
    LLAMA,
    Interrupted,
    after_part,
    interrupted,
    same_weights,
    saved,
    snapshot,
    unfinished,
    weights_of,
)
from torch import nn

import minislice
from minislice.architecture.network import network
from minislice.command.cli import main
from minislice.large.source import TrainedWeights
from minislice.large.streaming import StreamedRun, slice_streamed
from minislice.storage import files
from minislice.storage.files import INDEX

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def temporary_folder():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def other_files(folder: Path) -> dict[str, bytes]:
    """Of everything that isn't weights."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors" and p.name != INDEX}


def streaming_equals_memory(recipe: Recipe, dtype: torch.dtype, shards: bool, options: dict, edit=None) -> None:
    """`edit` is called with the model's folder before it is read."""
    with temporary_folder() as folder:
        dense = saved(recipe, folder, dtype, shards)
        if edit is not None:
            edit(dense)
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


OPTIONS = st.sampled_from(
    [
        {"slicing": 0.25, "multiple": 1},
        {"width": 3, "adapter": "none", "slice_head": True},
        {"discard": 0.05, "multiple": 1, "adapter": "full", "signal": "raw"},
        {"slicing": 0.5, "multiple": 1, "orientation": "random", "tolerance": 0.2},
        {"width": 3, "adapter": "none", "slice_embedding": False, "slice_head": True},
        {"slicing": 0},
        {"width": 5, "neurons": 0.5, "repair": True},
        {"slicing": 0.25, "multiple": 1, "basis": "random"},
        {"slicing": 0.25, "multiple": 1, "basis": "column-norm"},
    ]
)


@given(recipe=recipes(), dtype=st.sampled_from(DTYPES), shards=st.booleans(), options=OPTIONS)
@example(recipe=Recipe("opt", tied=True), dtype=torch.float16, shards=True, options={"width": 9, "head": "tied"})
@example(recipe=Recipe("phi", tied=True), dtype=torch.float32, shards=False, options={"width": 9, "head": "tied"})
@example(
    recipe=Recipe("phi", padding="left"),
    dtype=torch.float32,
    shards=False,
    options={"width": 5, "neurons": [16, 8], "repair": True},
)
@example(
    recipe=FamilyRecipe("gpt_oss", heads=4, head_dim=4, hidden=20, padding="left"),
    dtype=torch.float32,
    shards=False,
    options={"width": 12, "neurons": 0.5, "repair": True},
)
@example(
    recipe=Recipe("opt", tied=True, option=True),
    dtype=torch.float32,
    shards=True,
    options={"slicing": 0.5, "multiple": 1, "head": "fitted"},
)
def test_streaming_equals_memory_bit_for_bit(recipe, dtype, shards, options):
    streaming_equals_memory(recipe, dtype, shards, options)


OWN = {"width": 9, "head": "own"}
STREAMING_MISTAKES = [
    ("minislice.large.streaming.tie_embedding", wrong.nothing_done, "weights differ", {"width": 9}),
    ("minislice.large.streaming.fuse_blocks", wrong.norms_left_out, "weights differ", OWN),
    ("minislice.large.streaming.fuse_embeddings", wrong.nothing_done, "weights differ", OWN),
    ("minislice.large.streaming.fuse_head", wrong.nothing_done, "head.bias is None, and the config asks for", OWN),
    ("minislice.large.streaming.StreamedRun._part", wrong.written_before_it_was_sliced, "the config asks for", OWN),
    ("minislice.large.source.TrainedWeights.read", wrong.read_in_float16, "weights differ", OWN),
    ("minislice.large.streaming.put_in_place", wrong.copied_into_place, "left behind", OWN),
]


@pytest.mark.parametrize(("where", "mistake", "claim", "options"), STREAMING_MISTAKES)
def test_streaming_property_fails_on(where, mistake, claim, options, monkeypatch):
    monkeypatch.setattr(where, mistake(resolve_name(where)))
    with pytest.raises((AssertionError, RuntimeError), match=claim):
        streaming_equals_memory(Recipe("opt"), torch.float32, True, options)


# Interruptions


def test_a_run_killed_at_any_step_ends_with_the_same_bytes(tmp_path):
    """Real processes, real SIGKILLs: at every step on the disk, in the middle of a write too."""
    recipe = dataclasses.replace(LLAMA, layers=1)
    dense = saved(recipe, tmp_path)
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, script, dense, tmp_path / "runs" / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and rows, done.stderr
    whole, *killed, last = rows
    parts = recipe.layers + 2
    assert whole["status"] == last["status"] == parts  # nobody killed these
    assert {row["done"] for row in killed} == set(range(parts + 1))  # they died after every part, and before the first
    for row in killed:
        assert row["status"] == -signal.SIGKILL
        assert row["sliced again"] == parts - row["done"], row  # what was finished is not done twice
        assert row["contents"] == whole["contents"], row


def resumed_run_equals_whole(folder: Path, options: dict) -> None:
    dense = saved(Recipe("opt"), folder)
    run = {"source": dense, "tokens": Recipe("opt").tokens(), "batch_size": 3, **options}
    slice_streamed(**run, out=folder / "whole")
    for part in range(1, Recipe("opt").layers + 3):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            after_part(patch, part, interrupted)
            slice_streamed(**run, out=folder / f"resumed-{part}")
        report = slice_streamed(**run, out=folder / f"resumed-{part}")
        assert len(report.eigenvalues) == len(report.widths) == 2 * Recipe("opt").layers + 1
        same_weights(folder / "whole", folder / f"resumed-{part}")


RESUMED = {"width": 9, "adapter": "full", "orientation": "random", "head": "fitted", "neurons": 0.5, "repair": True}


@pytest.mark.parametrize("options", [RESUMED, {"width": 9, "basis": "random", "adapter": "none"}])
def test_a_resumed_run_equals_a_whole_one(options, tmp_path):
    resumed_run_equals_whole(tmp_path, options)


RESUMPTION_MISTAKES = [wrong.generator_forgotten, wrong.signal_forgotten, wrong.part_left_out, wrong.basis_in_float32]


@pytest.mark.parametrize("mistake", RESUMPTION_MISTAKES, ids=lambda mistake: mistake.__name__)
def test_resumption_fails_on(mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(StreamedRun, "_restore", mistake(StreamedRun._restore))
    with pytest.raises((AssertionError, ValueError), match=r"weights differ|needs 5 entries in 'widths', got 3"):
        resumed_run_equals_whole(tmp_path, RESUMED)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 8}, "width 9 there, 8 here"),
        ({"width": None, "slicing": 0.25}, "slicing None there, 0.25 here"),
        ({"signal": "raw"}, "signal 'normalized' there, 'raw' here"),
        ({"batch_size": 2}, "batch size 8 there, 2 here"),
        ({"dtype": "float16"}, "dtype 'torch.float32' there, 'torch.float16' here"),
        ({"tokens": LLAMA.tokens(seed=1)}, "calibration '"),
        ({"attention_mask": dataclasses.replace(LLAMA, padding="left").mask()}, "calibration '"),
        ({"source": "another"}, "model '"),
    ],
)
def test_an_unfinished_run_refuses_other_settings_and_stays_usable(change, named, tmp_path):
    run = unfinished(tmp_path)
    if change.get("source"):
        change = {"source": saved(dataclasses.replace(LLAMA, seed=1), tmp_path / "other")}
    before = snapshot(tmp_path / ".out.partial")
    with pytest.raises(ValueError, match=re.escape(named)):
        slice_streamed(**{**run, **change})
    assert snapshot(tmp_path / ".out.partial") == before
    slice_streamed(**run)
    assert (tmp_path / "out" / "config.json").is_file() and not (tmp_path / ".out.partial").exists()


def test_force_replaces_a_folder_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    run = {"source": saved(LLAMA, tmp_path), "tokens": LLAMA.tokens(), "out": tmp_path / "out", "width": 9}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(ValueError, match="exists and isn't empty"):
        slice_streamed(**run)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        after_part(patch, 3, interrupted)
        slice_streamed(**run, force=True)
    assert snapshot(tmp_path / "out") == {"precious": b"x"}
    slice_streamed(**run, force=True)
    assert "precious" not in snapshot(tmp_path / "out") and (tmp_path / "out" / "config.json").is_file()


# Bad input


def edit_one(folder: Path, change) -> Path:
    """Change the tensors of the shard that holds a layer's weights."""
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        if any("layers.1.mlp.down_proj" in name for name in tensors):
            change(tensors)
            save_file(tensors, path, metadata={"format": "pt"})
            return path
    raise AssertionError("no such tensor")


def cut_off(dense: Path) -> None:
    path = sorted(dense.glob("*.safetensors"))[-1]
    os.truncate(path, path.stat().st_size // 2)


def mislabelled(dense: Path) -> None:
    index = json.loads((dense / INDEX).read_text())
    names, files = zip(*index["weight_map"].items(), strict=True)
    index["weight_map"] = dict(zip(names, files[1:] + files[:1], strict=True))
    (dense / INDEX).write_text(json.dumps(index))


def another_shape(tensors: dict) -> None:
    name = next(name for name in tensors if "layers.1.mlp.down_proj" in name)
    tensors[name] = tensors[name][:, 1:].contiguous()


def not_a_number(tensors: dict) -> None:
    name = next(name for name in tensors if "layers.1.mlp.down_proj" in name)
    tensors[name][0, 0] = torch.nan


def renamed(tensors: dict) -> None:
    name = next(name for name in tensors if "layers.1.mlp.down_proj" in name)
    tensors[name + ".stray"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"model-0.*safetensors is damaged or cut off"),
        (mislabelled, r"index\.json says that .* is in model-.*, but it is in model-"),
        (lambda dense: edit_one(dense, another_shape), r"model-0.*down_proj.*\[20, 39\].*asks for \[20, 40\]"),
        (lambda dense: edit_one(dense, renamed), r"index\.json says that .*down_proj"),
        (lambda dense: sorted(dense.glob("*.safetensors"))[0].unlink(), r"model-0.* is missing"),
        (lambda dense: [file.unlink() for file in dense.glob("*.safetensors*")], r"no safetensors files"),
        (lambda dense: (dense / "config.json").unlink(), r"config\.json.* doesn't exist"),
    ],
)
def test_a_damaged_model_is_told_before_anything_is_written(damage, message, tmp_path):
    dense = saved(LLAMA, tmp_path)
    damage(dense)
    with pytest.raises(ValueError, match=message):
        slice_streamed(dense, LLAMA.tokens(), tmp_path / "out", width=9)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_weight_that_is_not_a_number_is_named_by_block_and_sequence_and_the_rest_stays(tmp_path):
    dense = saved(LLAMA, tmp_path)
    good = shutil.copytree(dense, tmp_path / "good")
    edit_one(dense, not_a_number)
    with pytest.raises(ValueError, match=r"behind block 3 has a NaN .* calibration sequence 0"):
        slice_streamed(dense, LLAMA.tokens(), tmp_path / "out", width=9)
    assert json.loads((tmp_path / ".out.partial" / "progress.json").read_text())["done"] == 2
    with pytest.raises(ValueError, match="model '"):  # mended weights are another model: its first layers may differ
        slice_streamed(good, LLAMA.tokens(), tmp_path / "out", width=9)


def test_a_head_that_is_not_a_number_is_not_written(tmp_path):
    dense = saved(dataclasses.replace(LLAMA, tied=False), tmp_path, shards=False)
    tensors = load_file(dense / "model.safetensors")
    tensors["lm_head.weight"][-1, -1] = torch.nan
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight has a NaN or an infinity"):
        slice_streamed(dense, LLAMA.tokens(), tmp_path / "out", width=9)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["source", "out"])
def test_a_folder_whose_name_is_not_utf8_is_told_before_the_work(name, tmp_path):
    run = {"source": saved(LLAMA, tmp_path), "tokens": LLAMA.tokens(), "out": tmp_path / "out", "width": 9}
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    if name == "source":
        run["source"].rename(strange)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="this name isn't UTF-8; rename the folder"):
        slice_streamed(**{**run, name: strange})
    assert snapshot(tmp_path) == before


def test_too_little_disk_is_told_before_work_starts(tmp_path, monkeypatch):
    dense = saved(LLAMA, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10**4, 10**4))
    monkeypatch.setattr(StreamedRun, "finish", lambda *arguments: pytest.fail("work has started"))
    with pytest.raises(ValueError, match=r"needs about .* GB.*the disk has 0\.00 GB"):
        slice_streamed(dense, LLAMA.tokens(), tmp_path / "out", width=9)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_disk_that_fills_up_ends_the_run_with_a_message_and_it_goes_on_later(tmp_path, monkeypatch):
    run = {"source": saved(LLAMA, tmp_path), "tokens": LLAMA.tokens(), "out": tmp_path / "out", "width": 9}
    write, calls = files.save_file, []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        write(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "save_file", full)
        slice_streamed(**run)
    slice_streamed(**run)
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    same_weights(tmp_path / "whole", tmp_path / "out")


def test_a_folder_that_may_not_be_written_to_is_one_line_of_the_command(tmp_path, monkeypatch, capsys):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".out.partial"))

    monkeypatch.setattr(Path, "mkdir", refused)
    arguments = ["slice", "mini-llama", "--stream", "--out", str(tmp_path / "out"), "--samples", "2", "--seqlen", "128"]
    assert main([*arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Permission denied" in error


def with_a_head(dense: Path, change: float) -> None:
    """Add a head's matrix to the files of a tied model: the embedding's, plus `change`."""
    path = dense / "model.safetensors"
    tensors = load_file(path)
    embedding = next(name for name in network(minislice.load(dense)[0]).model.all_tied_weights_keys.values())
    save_file({**tensors, "lm_head.weight": tensors[embedding] + change}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("change", [1.0, 0.0], ids=["another", "the same"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_tied_only_where_the_files_have_no_other_matrix_for_it(family, change, tmp_path):
    dense = saved(FamilyRecipe(family, layers=1), tmp_path, shards=False)
    with_a_head(dense, change)
    in_memory = network(minislice.load(dense)[0]).head_was_tied
    assert TrainedWeights(dense, "auto").net.head_was_tied == in_memory == (change == 0)


@pytest.mark.parametrize("recipe", [Recipe("opt"), Recipe("llama"), FamilyRecipe("gpt_neox", layers=2)])
def test_a_head_that_was_trained_apart_is_sliced_as_in_memory(recipe, tmp_path):
    streaming_equals_memory(recipe, torch.float32, False, {"slicing": 0.25}, lambda dense: with_a_head(dense, 1.0))


def test_a_matrix_that_is_there_under_the_heads_name_alone_is_the_embedding_too(tmp_path):
    dense = saved(LLAMA, tmp_path, shards=False)
    slice_streamed(dense, LLAMA.tokens(), tmp_path / "expected", width=9)
    tensors = load_file(dense / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    slice_streamed(dense, LLAMA.tokens(), tmp_path / "found", width=9)
    same_weights(tmp_path / "expected", tmp_path / "found")


@pytest.mark.parametrize("recipe", [LLAMA, Recipe("opt")], ids=lambda recipe: recipe.family)
def test_files_of_a_base_model_with_rope_tables_in_them_are_read(recipe, tmp_path):
    """As old checkpoints on the hub are: names without the first word, and tensors that no module has any more."""
    dense = saved(recipe, tmp_path, shards=False)
    slice_streamed(dense, recipe.tokens(), tmp_path / "expected", width=9)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(dense / "model.safetensors").items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    slice_streamed(dense, recipe.tokens(), tmp_path / "found", width=9)
    same_weights(tmp_path / "expected", tmp_path / "found")


def test_a_model_that_is_sliced_or_fused_already_is_refused(tmp_path):
    for name, options in (("sliced", {"width": 9}), ("fused", {"slicing": 0, "adapter": "none", "head": "own"})):
        slice_streamed(saved(LLAMA, tmp_path / name), LLAMA.tokens(), tmp_path / name / "out", **options)
        with pytest.raises(ValueError, match=name if name == "sliced" else "fused already"):
            slice_streamed(tmp_path / name / "out", LLAMA.tokens(), tmp_path / "again", width=5)
    assert not (tmp_path / "again").exists()


# Memory


def test_only_one_part_is_in_memory_at_a_time(tmp_path, monkeypatch):
    recipe = Recipe("llama", layers=3, biases=False)
    dense = saved(recipe, tmp_path)
    present = []
    part = StreamedRun._part

    @contextmanager
    def watched(self, index):
        with part(self, index):
            yield
            model = self.net.model
            present.append(
                {name.split(".")[2] for name, p in model.named_parameters() if not p.is_meta and ".layers." in name}
            )
            tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and not m.weight.is_meta]
            assert bool(tables) == (index == 0)

    monkeypatch.setattr(StreamedRun, "_part", watched)
    slice_streamed(dense, recipe.tokens(), tmp_path / "out", width=9)
    assert present == [set(), {"0"}, {"1"}, {"2"}, set()]
