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

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from models import Recipe, recipes
from safetensors.torch import load_file, save_file
from torch import nn

import minislice
from minislice.command.cli import main
from minislice.corpus import text
from minislice.fusion import bare
from minislice.large.streaming import StreamedRun, slice_streamed
from minislice.storage import files
from minislice.storage.files import INDEX

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LLAMA = Recipe("llama", layers=2, biases=False, option=False)


@contextmanager
def temporary_folder():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model's folder, whatever files they are in."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def other_files(folder: Path) -> dict[str, bytes]:
    """Of everything that isn't weights."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors" and p.name != INDEX}


def saved(recipe: Recipe, folder: Path, dtype: torch.dtype = torch.float32, shards: bool = True) -> Path:
    """A small random model on the disk."""
    recipe.model().to(dtype).save_pretrained(folder / "dense", max_shard_size=4000 if shards else "1GB")
    return folder / "dense"


def check_streaming_equals_memory(recipe: Recipe, dtype: torch.dtype, shards: bool, options: dict) -> None:
    with temporary_folder() as folder:
        dense = saved(recipe, folder, dtype, shards)
        model, _ = minislice.load(dense)
        minislice.slice_model(model, recipe.tokens(), recipe.mask(), batch_size=3, **options)
        minislice.save(model, folder / "memory")
        report = slice_streamed(dense, recipe.tokens(), folder / "streamed", recipe.mask(), batch_size=3, **options)
        expected, found = weights_of(folder / "memory"), weights_of(folder / "streamed")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype == dtype
            assert torch.equal(found[name], tensor), name
        assert other_files(folder / "streamed") == other_files(folder / "memory")
        assert report.widths == model.slicing.widths and report.ranks == model.slicing.ranks
        assert all(torch.equal(a, b) for a, b in zip(report.eigenvalues, model.slicing.eigenvalues, strict=True))
        loaded = minislice.load(folder / "streamed")[0]
        assert minislice.perplexity(loaded, recipe.tokens()) == minislice.perplexity(model, recipe.tokens())
        assert sorted(path.name for path in folder.iterdir()) == ["dense", "memory", "streamed"]  # no leftovers


OPTIONS = st.sampled_from(
    [
        {"slicing": 0.25, "multiple": 1},
        {"width": 3, "adapter": "none", "slice_head": True},
        {"discard": 0.05, "multiple": 1, "adapter": "full", "signal": "raw"},
        {"slicing": 0.5, "multiple": 1, "orientation": "random", "tolerance": 0.2},
        {"slicing": 0},
    ]
)


@given(recipe=recipes(), dtype=st.sampled_from(DTYPES), shards=st.booleans(), options=OPTIONS)
@example(recipe=Recipe("opt", tied=True), dtype=torch.float16, shards=True, options={"width": 9, "head": "tied"})
@example(recipe=Recipe("phi", tied=True), dtype=torch.float32, shards=False, options={"width": 9, "head": "tied"})
@example(
    recipe=Recipe("opt", tied=True, option=True),
    dtype=torch.float32,
    shards=True,
    options={"slicing": 0.5, "multiple": 1, "head": "fitted"},
)
def test_streaming_equals_memory_bit_for_bit(recipe, dtype, shards, options):
    check_streaming_equals_memory(recipe, dtype, shards, options)


# Mistakes, each of which the property above must notice.


def norms_left_out(right):
    return lambda net, blocks: [setattr(block, "norm", bare(block.norm, net)) for block in blocks]


def nothing_done(right):
    return lambda *arguments: None


def read_in_float16(right):
    def read(self, root, device):
        right(self, root, device)
        for parameter in root.parameters():
            parameter.data = parameter.data.half().to(parameter.dtype)

    return read


def written_before_it_was_sliced(right):
    @contextmanager
    def part(self, index):
        with right(self, index):
            self._write(index)
            self._write = lambda index: None
            yield
        del self._write

    return part


STREAMING_MISTAKES = [
    ("minislice.large.streaming.fuse_blocks", norms_left_out),
    ("minislice.large.streaming.fuse_embeddings", nothing_done),
    ("minislice.large.streaming.fuse_head", nothing_done),
    ("minislice.large.streaming.StreamedRun._part", written_before_it_was_sliced),
    ("minislice.large.source.TrainedWeights.read", read_in_float16),
]


@pytest.mark.parametrize(("where", "mistake"), STREAMING_MISTAKES, ids=lambda value: getattr(value, "__name__", value))
def test_streaming_property_fails_on(where, mistake, monkeypatch):
    owner, name = resolved(where)
    monkeypatch.setattr(owner, name, mistake(getattr(owner, name)))
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        check_streaming_equals_memory(Recipe("opt"), torch.float32, True, {"width": 9})


def resolved(where: str):
    module, *names = where.removeprefix("minislice.").split(".")
    owner = getattr(minislice, module)
    for name in names[:-1]:
        owner = getattr(owner, name)
    return owner, names[-1]


# Interruptions


def test_a_run_killed_at_any_step_ends_with_the_same_bytes(tmp_path):
    """Real processes, real SIGKILLs: at every step on the disk, in the middle of a write too."""
    dense = saved(LLAMA, tmp_path)
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
    parts = LLAMA.layers + 2
    assert whole["status"] == last["status"] == parts  # nobody killed these
    assert {row["done"] for row in killed} == set(range(parts + 1))  # they died after every part, and before the first
    for row in killed:
        assert row["status"] == -signal.SIGKILL
        assert row["sliced again"] == parts - row["done"], row  # what was finished is not done twice
        assert row["contents"] == whole["contents"], row


class Interrupted(BaseException):
    """Stands for a kill where a process of its own would take too long."""


def interrupt_after(monkeypatch, part: int) -> None:
    save_state = StreamedRun._save_state

    def and_then(self, done):
        save_state(self, done)
        if done == part:
            raise Interrupted

    monkeypatch.setattr(StreamedRun, "_save_state", and_then)


def check_resumed_equals_whole(folder: Path, options: dict) -> None:
    dense = saved(Recipe("opt"), folder)
    run = {"source": dense, "tokens": Recipe("opt").tokens(), "batch_size": 3, **options}
    slice_streamed(**run, out=folder / "whole")
    for part in range(1, Recipe("opt").layers + 3):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            interrupt_after(patch, part)
            slice_streamed(**run, out=folder / f"resumed-{part}")
        report = slice_streamed(**run, out=folder / f"resumed-{part}")
        assert len(report.eigenvalues) == len(report.widths) == 2 * Recipe("opt").layers + 1
        expected, found = weights_of(folder / "whole"), weights_of(folder / f"resumed-{part}")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


RESUMED = {"width": 9, "orientation": "random", "head": "fitted"}


def test_a_resumed_run_equals_a_whole_one(tmp_path):
    check_resumed_equals_whole(tmp_path, RESUMED)


def generator_forgotten(right):
    def restore(self):
        done = right(self)
        self.slicer.generator.manual_seed(0)
        return done

    return restore


def signal_forgotten(right):
    def restore(self):
        done = right(self)
        if done:
            for rows in self.slicer.Z.batches:
                rows.zero_()
        return done

    return restore


def one_part_too_many(right):
    def restore(self):
        done = right(self)
        return done + (done > 0)

    return restore


def basis_in_float32(right):
    def restore(self):
        done = right(self)
        if done:
            self.slicer.Q = self.slicer.Q.float().double()
        return done

    return restore


@pytest.mark.parametrize("mistake", [generator_forgotten, signal_forgotten, one_part_too_many, basis_in_float32])
def test_resumption_fails_on(mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(StreamedRun, "_restore", mistake(StreamedRun._restore))
    with pytest.raises((AssertionError, ValueError, RuntimeError, OSError)):
        check_resumed_equals_whole(tmp_path, RESUMED)


def unfinished(folder: Path, monkeypatch, part: int = 2) -> dict:
    """The arguments of a run that was interrupted, its state on the disk."""
    run = {"source": saved(LLAMA, folder), "tokens": LLAMA.tokens(), "out": folder / "out", "width": 9}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, part)
        slice_streamed(**run)
    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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
def test_an_unfinished_run_refuses_other_settings_and_stays_usable(change, named, tmp_path, monkeypatch):
    run = unfinished(tmp_path, monkeypatch)
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
        interrupt_after(patch, 3)
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
    expected, found = weights_of(tmp_path / "whole"), weights_of(tmp_path / "out")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_folder_that_may_not_be_written_to_is_one_line_of_the_command(tmp_path, monkeypatch, capsys):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".out.partial"))

    monkeypatch.setattr(Path, "mkdir", refused)
    arguments = ["slice", "mini-llama", "--stream", "--out", str(tmp_path / "out"), "--samples", "2", "--seqlen", "128"]
    assert main([*arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Permission denied" in error


@pytest.mark.parametrize("recipe", [LLAMA, Recipe("opt")], ids=lambda recipe: recipe.family)
def test_files_of_a_base_model_with_rope_tables_in_them_are_read(recipe, tmp_path):
    """As old checkpoints on the hub are: names without the first word, and tensors that no module has any more."""
    dense = saved(recipe, tmp_path, shards=False)
    slice_streamed(dense, recipe.tokens(), tmp_path / "expected", width=9)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(dense / "model.safetensors").items()}
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    slice_streamed(dense, recipe.tokens(), tmp_path / "found", width=9)
    expected, found = weights_of(tmp_path / "expected"), weights_of(tmp_path / "found")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_model_that_is_sliced_or_fused_already_is_refused(tmp_path):
    for name, options in (("sliced", {"width": 9}), ("fused", {"slicing": 0, "adapter": "none"})):
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


# Several processes


def torchrun(count: int, *arguments, kill: str = "") -> subprocess.CompletedProcess:
    """The command line in so many processes; `kill` is code that each runs first."""
    program = f"import sys\n{kill}\nfrom minislice.command.cli import main\nsys.exit(main())"
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(program)
        script.flush()
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), script.name, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )


SLICE = (
    "slice",
    "mini-llama",
    "--samples",
    "6",
    "--seqlen",
    "128",
    "--batch-size",
    "3",
    "--dtype",
    "float32",
    "--quiet",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """mini-llama, streamed by one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main([*SLICE, "--stream", "--out", str(out)]) == 0
    return out


def embedded_perplexity(folder: Path) -> float:
    model, tokenizer = minislice.load(folder, dtype="float32")
    stream = text.tokenize(text.load_text("embedded", "test"), tokenizer)
    return minislice.perplexity(model, text.windows(stream, 128, 8))


@pytest.mark.parametrize(("count", "stream"), [(2, True), (3, True), (2, False)])
def test_several_processes_agree_with_one(count, stream, alone, tmp_path):
    arguments = ["--stream"] if stream else ["--eval-samples", "2"]
    done = torchrun(count, *SLICE, *arguments, "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout)["saved to"]  # one of them speaks
    assert embedded_perplexity(tmp_path / "out") == pytest.approx(embedded_perplexity(alone), rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_processes_that_keep_their_covariances_to_themselves_do_not_agree(alone, tmp_path):
    mistake = "from minislice.large.processes import Processes\nProcesses.summed = lambda self, tensor: tensor"
    done = torchrun(2, *SLICE, "--stream", "--out", str(tmp_path / "out"), kill=mistake)
    assert done.returncode == 0, done.stderr
    assert embedded_perplexity(tmp_path / "out") != pytest.approx(embedded_perplexity(alone), rel=1e-6)


DIES = """
import os, signal
import minislice.large.streaming as streaming
save_state = streaming.StreamedRun._save_state
def die(self, done):
    save_state(self, done)
    if done == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
streaming.StreamedRun._save_state = die
"""


def test_a_process_that_dies_takes_the_run_down_and_the_run_resumes(alone, tmp_path):
    out = tmp_path / "out"
    died = torchrun(2, *SLICE, "--stream", "--out", str(out), kill=DIES)
    assert died.returncode != 0 and not out.exists()
    assert "lost another process" in died.stderr or "Signal 9" in died.stderr
    assert json.loads((tmp_path / ".out.partial" / "progress.json").read_text())["done"] >= 3
    again = torchrun(2, *SLICE, "--stream", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert embedded_perplexity(out) == pytest.approx(embedded_perplexity(alone), rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_more_processes_than_batches_is_one_clear_error(tmp_path):
    done = torchrun(
        2,
        *SLICE[:2],
        "--samples",
        "2",
        "--seqlen",
        "128",
        "--batch-size",
        "64",
        "--stream",
        "--out",
        str(tmp_path / "out"),
    )
    assert "2 processes can't share 1 calibration batches" in done.stderr and done.returncode != 0
    assert list(tmp_path.iterdir()) == []
