"""Several processes share one calibration set where they are told to, and only there."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import forked
import mistakes
import pytest
import torch
from forked import Ended, group_of
from models import Recipe
from streamed import after_part, same_weights
from torch import distributed

import minislice
from minislice.command.cli import main
from minislice.corpus import text
from minislice.large.processes import Processes
from minislice.large.shared import SharedCalibration

SIZES = ["--samples", "6", "--seqlen", "128", "--batch-size", "3"]
SLICE = ["slice", "mini-llama", *SIZES, "--dtype", "float32", "--quiet"]


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


def agree(alone: Path, out: Path) -> None:
    expected, found = embedded_perplexity(alone), embedded_perplexity(out)
    assert found == pytest.approx(expected, rel=1e-6), f"a perplexity of {found}, and {expected} alone"


def statuses(group: list[Ended]) -> list[int]:
    return [process.status for process in group]


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
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("count", "stream"), [(3, True), (2, False)])
def test_several_processes_agree_with_one(count, stream, alone, tmp_path):
    arguments = ["--stream"] if stream else ["--eval-samples", "2"]
    group = group_of(count, forked.minislice, *SLICE, *arguments, "--json", "--out", str(tmp_path / "out"))
    assert statuses(group) == [0] * count, group
    assert [line for process in group for line in process.said.splitlines() if '"saved to"' in line]
    agree(alone, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def not_summed() -> None:
    Processes.summed = mistakes.covariances_kept_to_oneself(Processes.summed)


def test_processes_that_keep_their_covariances_to_themselves_do_not_agree(alone, tmp_path):
    command = partial(forked.minislice, before=not_summed)
    group = group_of(2, command, *SLICE, "--stream", "--out", str(tmp_path / "out"))
    assert statuses(group) == [0, 0], group
    with pytest.raises(AssertionError, match="a perplexity of"):
        agree(alone, tmp_path / "out")


def second_dies_after_part_3() -> None:
    if os.environ["RANK"] == "1":
        after_part(pytest.MonkeyPatch(), 3, lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_process_that_dies_takes_the_run_down_and_the_run_resumes(alone, tmp_path):
    out = tmp_path / "out"
    arguments = [*SLICE, "--stream", "--out", str(out)]
    first, second = group_of(2, partial(forked.minislice, before=second_dies_after_part_3), *arguments)
    assert (first.status, second.status) == (1, -signal.SIGKILL) and not out.exists()
    assert "process 0 of 2 lost another process" in first.said and "Traceback" not in first.said
    assert json.loads((tmp_path / ".out.partial" / "progress.json").read_text())["done"] >= 3
    assert statuses(again := group_of(2, forked.minislice, *arguments)) == [0, 0], again
    agree(alone, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_share_that_has_changed_is_found_by_the_process_that_it_belongs_to(tmp_path):
    arguments = [*SLICE, "--stream", "--out", str(tmp_path / "out")]
    group_of(2, partial(forked.minislice, before=second_dies_after_part_3), *arguments)
    share = next((tmp_path / ".out.partial").glob("signal-[0-9]*-1"))
    share.write_bytes(bytes(share.stat().st_size))
    first, second = group_of(2, forked.minislice, *arguments)
    assert (first.status, second.status) == (1, 2) and f"{share} has changed since it was written" in second.said


def test_more_processes_than_batches_is_one_clear_error(tmp_path):
    arguments = [*SLICE[:2], "--samples", "2", "--seqlen", "128", "--batch-size", "64", "--quiet", "--stream"]
    group = group_of(2, forked.minislice, *arguments, "--out", str(tmp_path / "out"))
    for process in group:
        assert process.status == 2 and "2 processes can't share 1 calibration batches" in process.said, process.said
    assert list(tmp_path.iterdir()) == []


# A process group that is somebody else's


def rank() -> int:
    """Of this process, in a group as a training job has."""
    distributed.init_process_group("gloo")
    return distributed.get_rank()


def sliced(seed: int, **options):
    recipe = Recipe("llama", seed=seed)
    return minislice.slice_model(recipe.model(), recipe.tokens(), width=9, batch_size=2, **options)


def save(model, folder: Path) -> None:
    """On each rank: inside a group, transformers writes on the first alone."""
    distributed.destroy_process_group()
    minislice.save(model, folder)


def slice_on_the_first_alone() -> int:
    if rank() == 0:
        sliced(0)
    distributed.barrier()
    return 0


def slice_another_on_each(folder: Path) -> int:
    save(sliced(seed := rank()), folder / str(seed))
    return 0


def slice_together(folder: Path) -> int:
    index, processes = rank(), Processes(distributed.group.WORLD)
    model = sliced(0, calibration=partial(SharedCalibration, processes=processes))
    save(model, folder / str(index))
    return 0


def test_slicing_on_one_rank_waits_for_no_other(tmp_path):
    assert statuses(ended := group_of(2, slice_on_the_first_alone)) == [0, 0], ended


def test_ranks_that_slice_different_models_do_not_share(tmp_path):
    assert statuses(ended := group_of(2, slice_another_on_each, tmp_path)) == [0, 0], ended
    for seed in (0, 1):
        minislice.save(sliced(seed), tmp_path / "alone", force=True)
        same_weights(tmp_path / "alone", tmp_path / str(seed))


def test_ranks_that_are_told_to_share_one_set_do(tmp_path):
    assert statuses(ended := group_of(2, slice_together, tmp_path)) == [0, 0], ended
    same_weights(tmp_path / "0", tmp_path / "1")
    model, tokens = sliced(0), Recipe("llama").tokens()
    shared, _ = minislice.load(tmp_path / "0")
    with torch.no_grad():
        torch.testing.assert_close(shared(tokens).logits, model(tokens).logits, rtol=1e-8, atol=1e-8)
    half = minislice.slice_model(Recipe("llama").model(), tokens[::2], width=9)  # of one process's share alone
    with torch.no_grad():
        assert (half(tokens).logits - model(tokens).logits).abs().max() > 1e-3
