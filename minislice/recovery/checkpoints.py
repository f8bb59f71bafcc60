"""The folder of a recovery: which run it belongs to, and its checkpoints.

.checkpoints.lock            held by the run that is at work
settings.json                what is trained, on what, and how
checkpoint-16/               as transformers' Trainer writes it
checkpoint-16/seals.json     empty: the checkpoint is whole. It is written last, and deleted first
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..architecture.folder import sync, whole_file
from ..measuring.lock import alone
from ..storage.files import read_json
from ..storage.unfinished import SETTINGS, begin

WHOLE = "seals.json"


@contextmanager
def opened(folder: Path, settings: dict[str, Any]) -> Iterator[Path | None]:
    """The last checkpoint of this run, None where it has none yet; meanwhile no other run gets the folder.

    Raises:
        ValueError: as in `unfinished.begin`; or another run is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / "checkpoints"):
        begin(folder, settings)
        yield _last(folder)


def _last(folder: Path) -> Path | None:
    """The last checkpoint that is whole."""
    whole = [mark.parent for mark in folder.glob(f"checkpoint-*/{WHOLE}")]
    if not whole:
        return None
    last = max(whole, key=lambda checkpoint: int(checkpoint.name.removeprefix("checkpoint-")))
    best = read_json(last / "trainer_state.json")["best_model_checkpoint"]
    if best and Path(best) not in whole:
        raise ValueError(
            f"{last} needs {best} too, the best one, which isn't whole; put it back, or delete {folder} to start again"
        )
    return last


def call_whole(checkpoint: Path, best: str | None) -> None:
    """Say that a new checkpoint is whole, when its files are on the disk; then delete all others but the best one."""
    for path in checkpoint.iterdir():
        sync(path)
    with whole_file(checkpoint / WHOLE):
        pass
    for other in filter(Path.is_dir, checkpoint.parent.glob("checkpoint-*")):
        if other not in (checkpoint, best and Path(best)):
            call_unfinished(other)
            shutil.rmtree(other)


def call_unfinished(checkpoint: Path) -> None:
    """Say that a checkpoint is being written, or deleted."""
    (checkpoint / WHOLE).unlink(missing_ok=True)


def delete(folder: Path) -> None:
    """Delete what a recovery left in its folder, and the folder, unless something else is in it."""
    for checkpoint in filter(Path.is_dir, folder.glob("checkpoint-*")):
        shutil.rmtree(checkpoint)
    (folder / SETTINGS).unlink()
    with suppress(OSError):
        folder.rmdir()
