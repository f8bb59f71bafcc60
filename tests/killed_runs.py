"""Kill a streamed run at its n-th step on the disk, for every n; then run it again. Prints one JSON line for each n.

    python tests/killed_runs.py MODEL OUT

The steps are all that can leave something half done: a file made durable, renamed or deleted, and the middle of a
write. Each run is forked from this process, which has imported everything and computed nothing.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from streamed import parts_done

import minislice.storage.files
from minislice.large.streaming import StreamedSlicer, slice_streamed

torch.set_num_threads(1)  # a fork has no other threads


def run(model: str, out: str) -> int:
    """Slice. Returns the number of parts that were sliced. A folder that is there already is an error, and none."""
    save, calls = StreamedSlicer.save, []
    StreamedSlicer.save = lambda *arguments: calls.append(save(*arguments))
    tokens = torch.randint(1, 120, (4, 30), generator=torch.Generator().manual_seed(0))
    try:
        slice_streamed(model, tokens, out, slicing=0.25, orientation="random", batch_size=3)
    except ValueError as error:
        assert "exists and isn't empty" in str(error), error
    return len(calls)


def die_at(step: int) -> None:
    """Have this process kill itself when it has begun so many steps."""
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

    save_file = minislice.storage.files.save_file
    minislice.storage.files.save_file = counted(save_file, half_tensors)
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree")):
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
        status = in_child(lambda step=step: die_at(step) or run(model, str(out)))
        parts = parts or status
        done = parts if out.exists() else parts_done(out)  # the model is whole; at most the run's own files are left
        row = {"step": step, "status": status, "done": done, "sliced again": in_child(lambda: run(model, str(out)))}
        print(json.dumps(row | {"contents": contents(out)}), flush=True)
        step += 1


if __name__ == "__main__":
    main()
