"""A streamed run trusts nothing: neither what it finds on the disk, nor that it is alone, nor that its source stays."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked import Forked
from safetensors.torch import load_file, save_file
from streamed import LLAMA, after_part, same_weights, saved, snapshot, unfinished

from minislice.large import streaming
from minislice.large.streaming import slice_streamed

# One run at a time


def run_to(folder: Path) -> dict:
    return {"source": saved(LLAMA, folder), "tokens": LLAMA.tokens(), "out": folder / "out", "width": 9}


def test_a_second_run_into_the_same_folder_is_refused_and_the_first_is_not_disturbed(tmp_path, monkeypatch):
    run = run_to(tmp_path)
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    refused = []

    def again():
        before = snapshot(tmp_path / ".out.partial")
        with pytest.raises(ValueError, match=r"\.out\.partial is in use by another run"):
            slice_streamed(**run)
        assert snapshot(tmp_path / ".out.partial") == before
        refused.append(True)

    after_part(monkeypatch, 2, again)
    slice_streamed(**run)
    assert refused
    same_weights(tmp_path / "whole", tmp_path / "out")


def slow_run(run: dict) -> None:
    """In a process: two parts, then nothing any more."""
    with pytest.MonkeyPatch.context() as patch:
        after_part(patch, 2, lambda: time.sleep(300))
        slice_streamed(**run)


def wait_for(condition, timeout: float = 100) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.05)


def test_a_lock_is_held_by_a_process_that_lives_and_by_no_dead_one(tmp_path):
    run = run_to(tmp_path)
    progress = tmp_path / ".out.partial" / "progress.json"
    first = Forked(slow_run, run)
    wait_for(lambda: progress.exists() and json.loads(progress.read_text()).get("done") == 2)
    with pytest.raises(ValueError, match="in use by another run"):
        slice_streamed(**run)
    first.process.kill()
    assert first.ended().status == -signal.SIGKILL
    assert (tmp_path / ".out.partial" / "minislice.lock").exists()
    slice_streamed(**run)
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    same_weights(tmp_path / "whole", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out", "whole"]


def test_runs_that_are_refused_before_the_first_has_written_anything_leave_it_its_lock(tmp_path, monkeypatch):
    run = run_to(tmp_path)
    require_disk = streaming.require_disk

    def others_come(*arguments):
        for _ in range(2):
            with pytest.raises(ValueError, match="in use by another run"):
                slice_streamed(**run)
        require_disk(*arguments)

    monkeypatch.setattr(streaming, "require_disk", others_come)
    slice_streamed(**run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_what_appears_in_the_folder_during_a_run_stays_and_the_finished_model_too(tmp_path, monkeypatch):
    run = run_to(tmp_path)

    def appear():
        run["out"].mkdir()
        (run["out"] / "precious").write_text("x")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="exists and isn't empty"):
        after_part(patch, 4, appear)
        slice_streamed(**run)
    assert snapshot(run["out"]) == {"precious": b"x"}
    (run["out"] / "precious").unlink()
    monkeypatch.setattr(streaming.StreamedRun, "_slice", lambda *arguments: pytest.fail("sliced again"))
    slice_streamed(**run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


@pytest.mark.parametrize("name", ["notes.txt", "model", "lock-0", "lock-notes", "state-3.safetensors"])
def test_a_folder_of_that_name_that_no_run_has_left_is_not_touched(name, tmp_path):
    run = run_to(tmp_path)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"\.out\.partial isn't of an unfinished run"):
        slice_streamed(**run)
    assert snapshot(tmp_path) == before


def test_a_strangers_file_in_the_folder_of_a_run_is_not_deleted(tmp_path, monkeypatch):
    run = unfinished(tmp_path)
    note = tmp_path / ".out.partial" / "notes.txt"
    note.write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt is in it, which no run has written; move it away"):
        slice_streamed(**run)
    note.unlink()
    after_part(monkeypatch, 3, lambda: note.write_text("mine"))
    slice_streamed(**run)
    assert snapshot(tmp_path / ".out.partial") == {"notes.txt": b"mine"} and (run["out"] / "config.json").is_file()


# What an earlier run has left


def edited(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def field(name: str, value):
    """progress.json with one thing in it changed."""
    return lambda content: json.dumps({**json.loads(content), name: value}).encode()


DAMAGES = {
    "signal deleted": ("signal-*-0", None, "is missing"),
    "signal zeroed": ("signal-*-0", lambda content: bytes(len(content)), "has changed"),
    "signal shortened": ("signal-*-0", lambda content: content[:-4], r"has \d+ bytes in place of \d+"),
    "signal: a bit": ("signal-*-0", bit_flipped, "has changed"),
    "state deleted": ("state-3.safetensors", None, "is missing"),
    "state cut off": ("state-3.safetensors", lambda content: content[:100], "has 100 bytes"),
    "state: a bit": ("state-3.safetensors", bit_flipped, "has changed"),
    "part deleted": ("model/model-00001-of-00004.safetensors", None, "is missing"),
    "part: a bit": ("model/model-00002-of-00004.safetensors", bit_flipped, "has changed"),
    "part empty": ("model/model-00003-of-00004.safetensors", lambda content: b"", "has 0 bytes"),
    "progress empty": ("progress.json", lambda content: b"", "is damaged"),
    "progress cut off": ("progress.json", lambda content: content[:-3], "is damaged"),
    "progress: no text": ("progress.json", lambda content: b"\xff\xfe", "is damaged"),
    "progress: a list": ("progress.json", lambda content: b"[1]", "is damaged"),
    "progress: nothing": ("progress.json", lambda content: b"{}", "is damaged"),
    "progress: nested": ("progress.json", lambda content: b"[" * 100_000, "is damaged"),
    "progress: one part less": ("progress.json", field("done", 2), "is damaged"),
    "progress: no settings": ("progress.json", field("settings", None), "is damaged"),
}


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> dict:
    """A run that was interrupted, and beside it `whole`, what it would have become."""
    run = unfinished(tmp_path_factory.mktemp("left"), part=3)
    slice_streamed(**{**run, "out": run["out"].with_name("whole")})
    return run


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_left_and_has_changed_is_told_in_one_line_and_left_alone(damage, left, tmp_path):
    name, change, message = DAMAGES[damage]
    work = shutil.copytree(left["out"].with_name(".out.partial"), tmp_path / ".out.partial")
    [name] = [path.relative_to(work) for path in work.glob(name)]
    if change is None:
        (work / name).unlink()
    else:
        edited(work / name, change)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(work / name))},? .*{message}.* delete .*") as error:
        slice_streamed(**{**left, "out": tmp_path / "out"})
    assert "\n" not in str(error.value) and snapshot(tmp_path) == before


def test_a_run_starts_again_where_what_was_left_is_deleted_and_goes_on_where_it_is_whole(left, tmp_path):
    for name in ("resumed", "again"):
        work = shutil.copytree(left["out"].with_name(".out.partial"), tmp_path / f".{name}.partial")
        if name == "again":
            shutil.rmtree(work)
        slice_streamed(**{**left, "out": tmp_path / name})
        same_weights(left["out"].with_name("whole"), tmp_path / name)


# The source


def shard_of(dense: Path, name: str) -> Path:
    return next(path for path in sorted(dense.glob("*.safetensors")) if any(name in key for key in load_file(path)))


def overwritten(path: Path) -> None:
    """The same names, shapes, size; other numbers."""
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def overwritten_unseen(path: Path) -> None:
    """As before, and neither size nor time of the file tell."""
    before = path.stat()
    overwritten(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize(
    "change", [overwritten, overwritten_unseen, lambda path: os.truncate(path, 50), lambda path: path.unlink()]
)
def test_weights_that_change_during_a_run_are_refused_and_it_goes_on_with_those_of_before(change, tmp_path):
    run = run_to(tmp_path)
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    path = shard_of(run["source"], "layers.1.mlp.down_proj")
    shutil.copy2(path, tmp_path / "kept")
    with pytest.MonkeyPatch.context() as patch:
        after_part(patch, 2, lambda: change(path))
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} has changed since the run began"):
            slice_streamed(**run)
    assert not (tmp_path / "out").exists()
    shutil.copy2(tmp_path / "kept", path)
    slice_streamed(**run)
    same_weights(tmp_path / "whole", tmp_path / "out")
