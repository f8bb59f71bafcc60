"""Several processes share one calibration set: the model is the one that a single process makes."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import group_of
from streamed import after_part, parts_done

import minislice
from minislice.command.cli import main
from minislice.corpus import text
from minislice.corpus.batches import Batch
from minislice.large.processes import Processes
from minislice.large.shared import SharedCalibration

TEXT = argparse.__file__  # soon read
SIZES = ["--samples", "6", "--seqlen", "128", "--batch-size", "3"]
SLICE = ["slice", "mini-llama", "--calibration", TEXT, *SIZES, "--dtype", "float32", "--quiet"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> float:
    """The perplexity of mini-llama, streamed by one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main([*SLICE, "--stream", "--out", str(out)]) == 0
    return perplexity_of(out)


def perplexity_of(folder: Path) -> float:
    model, tokenizer = minislice.load(folder, dtype="float32")
    _, stream = text.disjoint_streams(TEXT, TEXT, tokenizer)
    return minislice.perplexity(model, text.windows(stream, 128, 8))


def agree(alone: float, out: Path) -> None:
    found = perplexity_of(out)
    # Sums in float32 have another order; a sequence too few or too many changes the third digit.
    assert found == pytest.approx(alone, rel=1e-5), f"a perplexity of {found}, and {alone} alone"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_torchrun_agrees_with_one_process(alone, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "minislice"]
    done = subprocess.run(
        [*command, *SLICE, "--stream", "--json", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout)["saved to"]  # one of them speaks
    agree(alone, tmp_path / "out")


def command(*arguments: str, before: Callable = lambda: None) -> int:
    """In a process of its own: minislice's command; `before` is called first."""
    before()
    return main([*SLICE, *arguments])


def run_together(count: int, function: Callable, *arguments) -> None:
    group = group_of(count, function, *arguments)
    assert [process.returncode for process in group] == [0] * count, group


@pytest.mark.parametrize(("count", "options"), [(3, ["--stream"]), (2, ["--eval-samples", "2"])])
def test_several_processes_agree_with_one(count, options, alone, tmp_path):
    run_together(count, command, *options, "--out", str(tmp_path / "out"))
    agree(alone, tmp_path / "out")


def not_summed() -> None:
    SharedCalibration.summed = lambda self, total: total


def test_processes_that_keep_their_covariances_to_themselves_do_not_agree(alone, tmp_path):
    run_together(2, partial(command, before=not_summed), "--stream", "--out", str(tmp_path / "out"))
    with pytest.raises(AssertionError, match="a perplexity of"):
        agree(alone, tmp_path / "out")


def second_dies_after_part_3() -> None:
    if os.environ["RANK"] == "1":
        after_part(pytest.MonkeyPatch(), 3, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_the_run_resumes(alone, tmp_path):
    out = tmp_path / "out"
    arguments = ["--stream", "--out", str(out)]
    first, second = group_of(2, partial(command, before=second_dies_after_part_3), *arguments)
    assert (first.returncode, second.returncode) == (1, -signal.SIGKILL) and not out.exists()
    assert "process 0 of 2 lost another process" in first.stdout and "Traceback" not in first.stdout
    assert parts_done(out) >= 3
    run_together(2, command, *arguments)
    agree(alone, out)


def test_more_processes_than_batches_is_one_clear_error():
    two, ids = Processes(2), torch.ones(1, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="2 processes can't share 1 calibration batches; start fewer"):
        SharedCalibration([Batch(ids, None, 0)], two)
