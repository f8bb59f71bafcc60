"""A folder that appears whole or not at all.

A saved model takes this file with it, as it does `blocks`.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_free(target: str | os.PathLike, force: bool = False) -> Path:
    """The folder to write, as an absolute path; a link to a folder is followed.

    Raises:
        ValueError: it is a file, or a folder with files in it and no `force`.
    """
    target = Path(target).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; give a folder to save to")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ValueError(f"{target} exists and isn't empty; save to another folder, or replace all of it with force")
    return target


@contextmanager
def whole_folder(target: str | os.PathLike, force: bool = False) -> Iterator[Path]:
    """A new folder to write to; it becomes `target` when the block ends, and vanishes if the block fails.

    The new folder is a sibling of the target, so that the last step is one rename: whoever looks at the target sees
    nothing, or what was there before, or all of the new. A killed process leaves the sibling (".NAME.partial-..."),
    never the target.

    Args:
        force: replace a target that has files in it; it stays as it is until the new folder is complete.

    Raises:
        ValueError: see `require_free`.
    """
    target = require_free(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        put_in_place(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Rename a finished folder to `target`, which it replaces if there is one."""
    old = target.with_name(f".{target.name}.replaced-{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():  # otherwise the old one could not be put back: never delete the last copy
            shutil.rmtree(old, ignore_errors=True)
