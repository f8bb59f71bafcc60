"""The folder of a recovery: which run it belongs to, and its checkpoints.

.checkpoints.lock            held by the run that is at work
settings.json                what is trained, on what, and how
checkpoint-16/               as transformers' Trainer writes it
checkpoint-16/seals.json     empty, written last: the checkpoint is whole (earlier versions wrote checksums into it)
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..architecture.folder import sync, whole_file
from ..measuring.lock import alone
from ..storage.files import read_json
from ..storage.unfinished import in_words, require_settings

SETTINGS, WHOLE = "settings.json", "seals.json"


@contextmanager
def opened(folder: Path, settings: dict[str, Any]) -> Iterator[Path | None]:
    """The last checkpoint of this run, None where it has none yet; meanwhile no other run gets the folder.

    Raises:
        ValueError: the folder holds files and no recovery, or a recovery with other settings; another run is at work
            in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / SETTINGS
    with alone(folder / "checkpoints"):
        files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if not files:
            with whole_file(record) as new:
                new.write_text(json.dumps(in_words(settings)), encoding="utf-8")
        elif not record.exists():
            raise ValueError(
                f"{folder} has files in it ({', '.join(files)}) and no {SETTINGS} of a recovery; give another folder, "
                "or delete it to start again"
            )
        require_settings(folder, read_json(record), in_words(settings))
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
            f"{last} goes on from {best} too, which isn't there; put it back, or delete {folder} to start again"
        )
    return last


def call_whole(checkpoint: Path) -> None:
    """Say that a checkpoint is whole, when all of its files are on the disk."""
    for path in checkpoint.iterdir():
        sync(path)
    with whole_file(checkpoint / WHOLE):
        pass


def delete(folder: Path) -> None:
    """Delete what a recovery left in its folder, and the folder, unless something else is in it."""
    for checkpoint in folder.glob("checkpoint-*/"):
        shutil.rmtree(checkpoint)
    (folder / SETTINGS).unlink()
    with suppress(OSError):
        folder.rmdir()
