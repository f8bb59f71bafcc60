"""A streamed run that kills itself at its n-th step on the disk, called in a process of its own.

The steps are all that can leave something half done: a file made durable, renamed or deleted, and the middle of a
write.
"""

import os
import shutil
import signal
from pathlib import Path

import minislice.storage.files
from minislice.large.streaming import slice_streamed


def slice_and_die(step: int, run: dict) -> int:
    """Slice, and die as soon as so many steps have begun."""
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
    slice_streamed(**run)
    return 0
