"""Several processes share one calibration set where they are told to, and only there."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
from forked import Ended, group_of
from models import Recipe
from streamed import after_part, parts_done, same_weights
from torch import distributed

import minislice
from minislice.command.cli import main
from minislice.corpus import text
from minislice.large.processes import Processes
from minislice.large.shared import SharedCalibration

SIZES = ["--samples", "6", "--seqlen", "128", "--batch-size", "3"]
SLICE = ["slice", "mini-llama", *SIZES, "--dtype", "float32", "--quiet"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> float:
    """The perplexity of mini-llama, streamed by one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main([*SLICE, "--stream", "--out", str(out)]) == 0
    return embedded_perplexity(out)


def embedded_perplexity(folder: Path) -> float:
    model, tokenizer = minislice.load(folder, dtype="float32")
    stream = text.tokenize(text.load_text("embedded", "test"), tokenizer)
    return minislice.perplexity(model, text.windows(stream, 128, 8))


def agree(alone: float, out: Path) -> None:
    found = embedded_perplexity(out)
    assert found == pytest.approx(alone, rel=1e-6), f"a perplexity of {found}, and {alone} alone"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def statuses(group: list[Ended]) -> list[int]:
    return [process.status for process in group]


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


@pytest.mark.parametrize(("count", "options"), [(3, ["--stream"]), (2, ["--eval-samples", "2"])])
def test_several_processes_agree_with_one(count, options, alone, tmp_path):
    group = group_of(count, forked.minislice, *SLICE, *options, "--json", "--out", str(tmp_path / "out"))
    assert statuses(group) == [0] * count, group
    agree(alone, tmp_path / "out")


def not_summed() -> None:
    Processes.summed = lambda self, tensor: tensor


def test_processes_that_keep_their_covariances_to_themselves_do_not_agree(alone, tmp_path):
    command = partial(forked.minislice, before=not_summed)
    group = group_of(2, command, *SLICE, "--stream", "--out", str(tmp_path / "out"))
    assert statuses(group) == [0, 0], group
    with pytest.raises(AssertionError, match="a perplexity of"):
        agree(alone, tmp_path / "out")


def second_dies_after_part_3() -> None:
    if os.environ["RANK"] == "1":
        after_part(pytest.MonkeyPatch(), 3, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_the_run_resumes_unless_a_share_has_changed(alone, tmp_path):
    out = tmp_path / "out"
    arguments = [*SLICE, "--stream", "--out", str(out)]
    first, second = group_of(2, partial(forked.minislice, before=second_dies_after_part_3), *arguments)
    assert (first.status, second.status) == (1, -signal.SIGKILL) and not out.exists()
    assert "process 0 of 2 lost another process" in first.said and "Traceback" not in first.said
    assert parts_done(out) >= 3
    share = next((tmp_path / ".out.partial").glob("signal-*-1"))
    content = share.read_bytes()
    share.write_bytes(bytes(len(content)))
    first, second = group_of(2, forked.minislice, *arguments)
    assert (first.status, second.status) == (1, 2) and f"{share} has changed since it was written" in second.said
    share.write_bytes(content)
    assert statuses(again := group_of(2, forked.minislice, *arguments)) == [0, 0], again
    agree(alone, out)


def test_more_processes_than_batches_is_one_clear_error(tmp_path):
    arguments = [*SLICE[:2], "--samples", "2", "--seqlen", "128", "--batch-size", "64", "--quiet", "--stream"]
    for process in group_of(2, forked.minislice, *arguments, "--out", str(tmp_path / "out")):
        assert process.status == 2 and "2 processes can't share 1 calibration batches" in process.said, process.said
    assert list(tmp_path.iterdir()) == []


# A process group that is somebody else's


def sliced(seed: int, **options):
    recipe = Recipe("llama", seed=seed)
    return minislice.slice_model(recipe.model(), recipe.tokens(), width=9, batch_size=2, **options)


def slice_in_a_group(folder: Path) -> int:
    """The first rank alone, then another model on each rank, then one model together."""
    distributed.init_process_group("gloo")
    index, processes = distributed.get_rank(), Processes(distributed.group.WORLD)
    if index == 0:
        sliced(0)
    distributed.barrier()
    apart = sliced(index)
    together = sliced(0, calibration=partial(SharedCalibration, processes=processes))
    distributed.destroy_process_group()  # inside a group, transformers writes on the first rank alone
    minislice.save(apart, folder / f"apart-{index}")
    minislice.save(together, folder / f"together-{index}")
    return 0


def test_the_ranks_of_a_group_share_a_set_only_where_they_are_told_to(tmp_path):
    assert statuses(ended := group_of(2, slice_in_a_group, tmp_path)) == [0, 0], ended
    for seed in (0, 1):
        minislice.save(sliced(seed), tmp_path / "alone", force=True)
        same_weights(tmp_path / "alone", tmp_path / f"apart-{seed}")
    same_weights(tmp_path / "together-0", tmp_path / "together-1")
    tokens = Recipe("llama").tokens()
    model, shared = sliced(0), minislice.load(tmp_path / "together-0")[0]
    half = minislice.slice_model(Recipe("llama").model(), tokens[::2], width=9)  # of one process's share alone
    with torch.no_grad():
        expected = model(tokens).logits
        torch.testing.assert_close(shared(tokens).logits, expected, rtol=1e-8, atol=1e-8)
        assert (half(tokens).logits - expected).abs().max() > 1e-3
