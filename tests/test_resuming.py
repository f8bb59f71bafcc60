"""A streamed run is resumed as if it had never stopped; it trusts neither the disk, nor that it is alone."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mistakes as wrong
import pytest
from forked import Forked
from models import Recipe
from streamed import LLAMA, after_part, edit, file_of, parts_done, run_to, same_weights, saved, snapshot, stopped

from minislice.large import streaming
from minislice.large.streaming import StreamedSlicer, slice_streamed


@pytest.mark.slow
def test_a_run_killed_at_any_step_ends_with_the_same_bytes(tmp_path):
    """Real processes, real SIGKILLs: at every step on the disk, in the middle of a write too."""
    dense = saved(dataclasses.replace(LLAMA, layers=1), tmp_path)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_runs.py"), dense, tmp_path / "runs" / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and rows, done.stderr
    whole, *killed, last = rows
    assert whole["status"] == last["status"] == 3  # nobody killed these
    assert {row["done"] for row in killed} == {0, 1, 2, 3}  # the others died after every part, and before the first
    for row in killed:
        assert row["status"] == -signal.SIGKILL
        assert row["sliced again"] == 3 - row["done"], row  # what was finished is not done twice
        assert row["contents"] == whole["contents"], row


def resumed_run_equals_whole(folder: Path, options: dict) -> None:
    dense = saved(Recipe("opt"), folder)
    run = {"source": dense, "tokens": Recipe("opt").tokens(), "batch_size": 3, **options}
    slice_streamed(**run, out=folder / "whole")
    for part in range(1, Recipe("opt").layers + 3):
        report = slice_streamed(**stopped(part, {**run, "out": folder / f"resumed-{part}"}))
        assert len(report.eigenvalues) == len(report.widths) == 2 * Recipe("opt").layers + 1
        same_weights(folder / "whole", folder / f"resumed-{part}")


RESUMED = {"width": 9, "adapter": "full", "orientation": "random", "head": "fitted", "neurons": 0.5, "repair": True}
RESUMED["reconstruct"] = True


@pytest.mark.parametrize("options", [RESUMED, {"width": 9, "basis": "random", "adapter": "none"}])
def test_a_resumed_run_equals_a_whole_one(options, tmp_path):
    resumed_run_equals_whole(tmp_path, options)


@pytest.mark.parametrize("mistake", ["generator_forgotten", "signal_forgotten", "part_left_out", "basis_in_float32"])
def test_resumption_fails_on(mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(StreamedSlicer, "restore", getattr(wrong, mistake)(StreamedSlicer.restore))
    with pytest.raises((AssertionError, ValueError), match=r"weights differ|needs 5 entries in 'widths', got 3"):
        resumed_run_equals_whole(tmp_path, RESUMED)


# One run at a time


def test_other_runs_into_the_folder_are_refused_and_do_not_disturb_the_first(tmp_path, monkeypatch):
    """Before it has written anything, and later: a third run gets no further than the second."""
    run, refused = run_to(tmp_path), []
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    require_disk = streaming.require_disk

    def others_come():
        before = snapshot(tmp_path)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"another run writes to .*\.out\.partial"):
                slice_streamed(**run)
        assert snapshot(tmp_path) == before
        refused.append(True)

    monkeypatch.setattr(streaming, "require_disk", lambda *arguments: others_come() or require_disk(*arguments))
    after_part(monkeypatch, 2, others_come)
    slice_streamed(**run)
    assert len(refused) == 2
    same_weights(tmp_path / "whole", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out", "whole"]


def slow_run(run: dict) -> None:
    """In a process: two parts, then nothing any more."""
    with pytest.MonkeyPatch.context() as patch:
        after_part(patch, 2, lambda: time.sleep(300))
        slice_streamed(**run)


def test_a_lock_is_held_by_a_process_that_lives_and_by_no_dead_one(tmp_path):
    run = run_to(tmp_path)
    first, end = Forked(slow_run, run), time.monotonic() + 100
    while parts_done(run["out"]) < 2:
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.05)
    with pytest.raises(ValueError, match="another run writes to"):
        slice_streamed(**run)
    first.process.kill()
    assert first.ended().status == -signal.SIGKILL
    slice_streamed(**run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


# Files that are not the run's


def test_a_folder_of_that_name_that_no_run_has_left_is_not_touched(tmp_path):
    run = run_to(tmp_path)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "signal-1-0").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"\.out\.partial isn't of an unfinished run"):
        slice_streamed(**run)
    assert snapshot(tmp_path) == before


def test_what_others_write_during_a_run_stays_and_so_does_the_finished_model(tmp_path, monkeypatch):
    run = run_to(tmp_path)
    note = tmp_path / ".out.partial" / "notes.txt"

    def appear():
        run["out"].mkdir()
        for path in (note, run["out"] / "precious"):
            path.write_text("mine")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="exists and isn't empty"):
        after_part(patch, 4, appear)
        slice_streamed(**run)
    assert snapshot(run["out"]) == {"precious": b"mine"}
    (run["out"] / "precious").unlink()
    monkeypatch.setattr(StreamedSlicer, "slice_layer", lambda *arguments: pytest.fail("sliced again"))
    slice_streamed(**run)
    assert snapshot(note.parent) == {"notes.txt": b"mine"} and (run["out"] / "config.json").is_file()


def test_force_replaces_a_folder_only_when_the_new_one_is_whole(tmp_path):
    run = run_to(tmp_path, force=True)
    run["out"].mkdir()
    (run["out"] / "precious").write_text("x")
    stopped(3, run)
    assert snapshot(run["out"]) == {"precious": b"x"}
    slice_streamed(**run)
    assert "precious" not in snapshot(run["out"]) and (run["out"] / "config.json").is_file()


# What an earlier run has left


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> dict:
    """A run that was interrupted after three of four parts."""
    return stopped(3, run_to(tmp_path_factory.mktemp("left")))


@pytest.fixture
def copied(left, tmp_path) -> tuple[dict, Path]:
    """That run in a folder of its own, and its work folder."""
    work = shutil.copytree(left["out"].with_name(".out.partial"), tmp_path / ".out.partial")
    return {**left, "out": tmp_path / "out"}, work


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 8}, "width 9 there, 8 here"),
        ({"batch_size": 2}, "batch size 8 there, 2 here"),
        ({"dtype": "float16"}, "dtype torch.float32 there, torch.float16 here"),
        ({"tokens": LLAMA.tokens(seed=1)}, "(calibration "),
        ({"attention_mask": dataclasses.replace(LLAMA, padding="left").mask()}, "(calibration "),
        ({"source": "another"}, "(model "),
    ],
)
def test_an_unfinished_run_refuses_other_settings_and_stays_as_it_is(change, named, copied, tmp_path):
    run, work = copied
    if change.get("source"):
        change = {"source": saved(dataclasses.replace(LLAMA, seed=1), tmp_path / "other")}
    before = snapshot(work)
    with pytest.raises(ValueError, match=re.escape(named)):
        slice_streamed(**{**run, **change})
    assert snapshot(work) == before


def bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("signal-*-0", None, "is missing"),
        ("signal-*-0", bit_flipped, "has changed"),
        ("model/model-00001-of-00004.safetensors", None, "is missing"),
        ("model/model-00002-of-00004.safetensors", bit_flipped, "has changed"),
        ("state.pt", bit_flipped, "is damaged"),
        ("state.pt", lambda content: b"cut", "is damaged"),
    ],
)
def test_what_was_left_and_has_changed_is_told_in_one_line_and_left_alone(name, change, message, copied, tmp_path):
    run, work = copied
    [path] = work.glob(name)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} {message}.* delete .*") as error:
        slice_streamed(**run)
    assert "\n" not in str(error.value) and snapshot(tmp_path) == before


# The source


def overwritten(path: Path) -> None:
    """The same names, shapes, size; other numbers."""
    edit(path, lambda tensors: [tensor.add_(1) for tensor in tensors.values()])


@pytest.mark.parametrize("change", [overwritten, Path.unlink])
def test_weights_that_change_during_a_run_are_refused_and_it_goes_on_with_those_of_before(change, tmp_path):
    run = run_to(tmp_path)
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    path = file_of(run["source"], "layers.1.mlp.down_proj")
    shutil.copy2(path, tmp_path / "kept")
    with pytest.MonkeyPatch.context() as patch:
        after_part(patch, 2, lambda: change(path))
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} has changed since the run began"):
            slice_streamed(**run)
    assert not (tmp_path / "out").exists()
    shutil.copy2(tmp_path / "kept", path)
    slice_streamed(**run)
    same_weights(tmp_path / "whole", tmp_path / "out")
