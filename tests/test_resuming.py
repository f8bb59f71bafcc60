"""A streamed run is resumed as if it had never stopped; it trusts neither the disk, nor that it is alone."""

import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from forked import Forked
from models import Recipe
from safetensors.torch import save_file
from streamed import LLAMA, after_part, edit, file_of, parts_done, run_to, same_weights, saved, snapshot

from minislice.large import streaming
from minislice.large.streaming import StreamedSlicer, slice_streamed


def stopped(done: int, run: dict) -> dict:
    """The arguments of a run that was interrupted when so many parts were done."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        after_part(patch, done, Mock(side_effect=KeyboardInterrupt))
        slice_streamed(**run)
    return run


def slice_and_die(step: int, run: dict) -> int:
    """Slice, in a process of its own that dies as soon as so many steps on the disk have begun.

    The steps are all that can leave something half done: a file made durable, renamed or deleted, and the middle of a
    write.
    """
    count = 0

    def counted(function, before=lambda *_: None):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                before(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def half_tensors(tensors, path):
        save_file(tensors, path)
        os.truncate(path, os.path.getsize(path) // 2)

    streaming.save_file = counted(save_file, half_tensors)
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree")):
        setattr(owner, name, counted(getattr(owner, name)))
    slice_streamed(**run)
    return 0


@pytest.mark.slow
def test_a_run_killed_at_any_step_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """Real processes, real SIGKILLs: at every step on the disk, in the middle of a write too."""
    run = run_to(tmp_path / "source", replace(LLAMA, layers=1), orientation="random", batch_size=3)
    slice_streamed(**{**run, "out": tmp_path / "whole" / "out"})
    run["out"], step, reached = tmp_path / "runs" / "out", 0, set()
    sliced, save = [], StreamedSlicer.save
    monkeypatch.setattr(StreamedSlicer, "save", lambda *arguments: sliced.append(save(*arguments)))
    while (status := Forked(slice_and_die, step := step + 1, run).ended().returncode) == -signal.SIGKILL:
        done = 3 if run["out"].exists() else parts_done(run["out"])
        try:
            slice_streamed(**run)
        except ValueError as error:
            assert done == 3 and "exists and isn't empty" in str(error)
        assert len(sliced) == 3 - done, "what was finished is done twice"
        assert snapshot(tmp_path / "runs") == snapshot(tmp_path / "whole")
        reached.add(done)
        sliced.clear()
        shutil.rmtree(tmp_path / "runs")
    assert status == 0 and reached == {0, 1, 2, 3}


def resumed_run_equals_whole(folder: Path, options: dict) -> None:
    dense, recipe = saved(Recipe("opt"), folder), Recipe("opt")
    run = {"source": dense, "tokens": recipe.tokens(), "batch_size": 3, **options}
    slice_streamed(**run, out=folder / "whole")
    for part in range(1, recipe.layers + 2):
        report = slice_streamed(**stopped(part, {**run, "out": folder / f"resumed-{part}"}))
        assert len(report.eigenvalues) == len(report.widths) == 2 * recipe.layers + 1
        same_weights(folder / "whole", folder / f"resumed-{part}")


RESUMED = {"width": 9, "adapter": "full", "orientation": "random", "head": "fitted", "neurons": 0.5, "repair": True}


@pytest.mark.parametrize("options", [RESUMED, {"width": 9, "basis": "random", "adapter": "none"}])
def test_a_resumed_run_equals_a_whole_one(options, tmp_path):
    resumed_run_equals_whole(tmp_path, options)


MISTAKES = {  # in restoring a slicer; what one gives is added to the number of parts that are done
    "generator forgotten": lambda slicer: slicer.generator.manual_seed(0) and 0,
    "signal forgotten": lambda slicer: [rows.zero_() for rows in slicer.Z.batches] and 0,
    "part left out": lambda slicer: 1,
    "basis in float32": lambda slicer: setattr(slicer, "Q", slicer.Q.float().double()) or 0,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_resumption_fails_on(mistake, tmp_path, monkeypatch):
    right = StreamedSlicer.restore
    restore = lambda slicer: done + MISTAKES[mistake](slicer) if (done := right(slicer)) else 0  # noqa: E731
    monkeypatch.setattr(StreamedSlicer, "restore", restore)
    with pytest.raises((AssertionError, ValueError), match=r"weights differ|needs 5 entries in 'widths', got 3"):
        resumed_run_equals_whole(tmp_path, RESUMED)


def test_other_runs_into_the_folder_are_refused_and_do_not_disturb_the_first(tmp_path, monkeypatch):
    """Before it has written anything, and later: a third run gets no further than the second."""
    run, refused = run_to(tmp_path), []
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    require_disk = StreamedSlicer.require_disk

    def others_come():
        before = snapshot(tmp_path)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"another run writes to .*\.out\.partial"):
                slice_streamed(**run)
        assert snapshot(tmp_path) == before
        refused.append(True)

    monkeypatch.setattr(StreamedSlicer, "require_disk", lambda *arguments: others_come() or require_disk(*arguments))
    after_part(monkeypatch, 2, others_come)
    slice_streamed(**run)
    assert len(refused) == 2
    same_weights(tmp_path / "whole", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out", "whole"]


def test_what_others_write_during_a_run_stays_and_so_does_the_finished_model(tmp_path, monkeypatch):
    run = run_to(tmp_path)

    def appear():
        run["out"].mkdir()
        (run["out"] / "precious").write_text("mine")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="exists and isn't empty"):
        after_part(patch, 4, appear)
        slice_streamed(**run)
    assert snapshot(run["out"]) == {"precious": b"mine"}
    monkeypatch.setattr(StreamedSlicer, "slice_layer", lambda *arguments: pytest.fail("sliced again"))
    slice_streamed(**run, force=True)
    assert "precious" not in snapshot(run["out"]) and (run["out"] / "config.json").is_file()


def test_an_unfinished_run_refuses_other_settings_and_stays_as_it_is(tmp_path):
    run = stopped(3, run_to(tmp_path))
    other_model = saved(replace(LLAMA, seed=1), tmp_path / "other")
    before = snapshot(tmp_path)
    for change, named in (
        ({"width": 8}, "width 9 there, 8 here"),
        ({"tokens": LLAMA.tokens(seed=1)}, r"\(calibration "),
        ({"source": other_model}, r"\(model "),
    ):
        with pytest.raises(ValueError, match=named):
            slice_streamed(**{**run, **change})
        assert snapshot(tmp_path) == before


def test_what_was_left_and_has_changed_is_told_in_one_line_and_left_alone(tmp_path):
    run = stopped(3, run_to(tmp_path))
    for name in ("signal-*-0", "model/model-00002-of-00004.safetensors", "state.pt"):
        [path] = (tmp_path / ".out.partial").glob(name)
        content, status = path.read_bytes(), path.stat()
        path.write_bytes(bytes(len(content)))
        before = snapshot(tmp_path)
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} (has changed|is damaged).* delete .*$"):
            slice_streamed(**run)
        assert snapshot(tmp_path) == before
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_weights_that_change_during_a_run_are_refused_and_it_goes_on_with_those_of_before(tmp_path):
    run = run_to(tmp_path)
    slice_streamed(**{**run, "out": tmp_path / "whole"})
    path = file_of(run["source"], "layers.1.mlp.down_proj")
    shutil.copy2(path, tmp_path / "kept")
    added = lambda tensors: [tensor.add_(1) for tensor in tensors.values()]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="has changed since the run began"):
        after_part(patch, 2, lambda: edit(path, added))
        slice_streamed(**run)
    shutil.copy2(tmp_path / "kept", path)
    slice_streamed(**run)
    same_weights(tmp_path / "whole", tmp_path / "out")
