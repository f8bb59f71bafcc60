"""The folder of a recovery: which run it belongs to, and its checkpoints.

.checkpoints.lock            held by the run that is at work
settings.json                what is trained, on what, and how
checkpoint-16/               as transformers' Trainer writes it
checkpoint-16/seals.json     written last: the seal of every file of the checkpoint
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..architecture.folder import whole_file
from ..measuring.lock import alone
from ..storage.files import read_json
from ..storage.unfinished import in_words, require_sealed, require_settings, seal

SETTINGS, SEALS = "settings.json", "seals.json"


@contextmanager
def opened(folder: Path, settings: dict[str, Any]) -> Iterator[Path | None]:
    """The last checkpoint of this run, None where it has none yet; meanwhile no other run gets the folder.

    Raises:
        ValueError: the folder holds files and no recovery, or a recovery with other settings; a file was changed;
            another run is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / SETTINGS
    with alone(folder / "checkpoints"):
        files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if not files:
            _write(record, in_words(settings))
        elif not record.exists():
            raise ValueError(
                f"{folder} has files in it ({', '.join(files)}) and no {SETTINGS} of a recovery; give another folder, "
                "or delete it to start again"
            )
        require_settings(folder, read_json(record), in_words(settings))
        yield _last(folder)


def _last(folder: Path) -> Path | None:
    """The last checkpoint that is whole. The Trainer reads the best one too, so that all are checked."""
    whole = [seals.parent for seals in folder.glob(f"checkpoint-*/{SEALS}")]
    for checkpoint in whole:
        require_sealed(folder, read_json(checkpoint / SEALS))
    if not whole:
        return None
    last = max(whole, key=lambda checkpoint: int(checkpoint.name.removeprefix("checkpoint-")))
    best = read_json(last / "trainer_state.json")["best_model_checkpoint"]
    if best and Path(best) not in whole:
        raise ValueError(f"{last} goes on from {best} too, which isn't there; delete {folder} to start again")
    return last


def seal_checkpoint(checkpoint: Path) -> None:
    """Write the seals of all files; a checkpoint without them is unfinished."""
    _write(checkpoint / SEALS, {f"{checkpoint.name}/{path.name}": seal(path) for path in checkpoint.iterdir()})


def delete(folder: Path) -> None:
    """Delete what a recovery left in its folder, and the folder, unless something else is in it."""
    for checkpoint in folder.glob("checkpoint-*/"):
        shutil.rmtree(checkpoint)
    (folder / SETTINGS).unlink()
    with suppress(OSError):
        folder.rmdir()


def _write(path: Path, content: dict[str, str]) -> None:
    with whole_file(path) as new:
        new.write_text(json.dumps(content), encoding="utf-8")
