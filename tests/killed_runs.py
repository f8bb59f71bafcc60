"""Kill a streamed run at its n-th step on the disk, for every n; then run it again. Prints one JSON line for each n.

    python tests/killed_runs.py MODEL OUT

The steps are all that can leave something half done: a file made durable, renamed or deleted, and the middle of a
write of weights. Each run is a process that kills itself with SIGKILL; it is forked from this one, which has imported
everything and computed nothing.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

import minislice.storage.files
from minislice.large.streaming import StreamedRun, slice_streamed

torch.set_num_threads(1)  # a fork has no other threads


def run(model: str, out: str) -> int:
    """Slice; the number of parts that were sliced. A folder that is there already is an error, and none."""
    written = []
    StreamedRun._save_state = noted(StreamedRun._save_state, written)
    tokens = torch.randint(1, 120, (4, 30), generator=torch.Generator().manual_seed(0))
    try:
        slice_streamed(model, tokens, out, slicing=0.25, orientation="random", batch_size=3)
    except ValueError as error:
        assert "exists and isn't empty" in str(error), error
    return len(written)


def noted(function, calls: list):
    """The function, with each call noted."""

    def call(*args):
        calls.append(args)
        return function(*args)

    return call


def die_at(step: int) -> None:
    """Have this process kill itself when it has begun so many steps."""
    count = 0

    def counted(function, first=lambda *_: None):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                first(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def half(tensors, path):
        save_file(tensors, path)
        os.truncate(path, os.path.getsize(path) // 2)

    save_file = minislice.storage.files.save_file
    minislice.storage.files.save_file = counted(save_file, half)
    for owner, name in (
        (os, "fsync"),
        (Path, "replace"),
        (Path, "rename"),
        (Path, "unlink"),
        (shutil, "rmtree"),
    ):
        setattr(owner, name, counted(getattr(owner, name)))


def in_child(work) -> int:
    """Wait for a forked process that does `work`; minus the signal that killed it, or what `work` returned."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> str:
    """A checksum of every file's name and bytes, and of the names beside the folder."""
    digest = hashlib.sha256(repr(sorted(path.name for path in folder.parent.iterdir())).encode())
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    status, step, parts = 0, 0, 0
    while step <= 1 or status == -signal.SIGKILL:  # step 0 is the run that nobody kills
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()

        def killed_run(step=step):
            die_at(step)
            return run(model, str(out))

        status = in_child(killed_run)
        progress = out.with_name(f".{out.name}.partial") / "progress.json"
        parts = parts or status
        done = json.loads(progress.read_text()).get("done", 0) if progress.exists() else 0
        if out.exists():  # the model is whole; at most the run's own files are left
            done = parts
        row = {"step": step, "status": status, "done": done, "sliced again": in_child(lambda: run(model, str(out)))}
        print(json.dumps(row | {"contents": contents(out)}), flush=True)
        step += 1


if __name__ == "__main__":
    main()
