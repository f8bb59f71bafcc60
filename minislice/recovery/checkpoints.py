"""The folder of a recovery: which run it belongs to, and its checkpoints.

.checkpoints.lock               held by the run that is at work
settings.json                   what is trained, on what, and how
checkpoint-16/                  as transformers' Trainer writes it
checkpoint-16/checksums.json    written last: the checksum of every file of the checkpoint
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..architecture.folder import sync, whole_file
from ..measuring.lock import alone
from ..storage.files import checksum, read_json

SETTINGS, CHECKSUMS = "settings.json", "checksums.json"


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
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others and not record.exists():
            raise ValueError(
                f"{folder} has files in it ({', '.join(others)}) and no {SETTINGS} of a recovery; give a folder of its "
                "own, or, if these are checkpoints, delete it to start again"
            )
        if not others:
            _write(record, settings)
        before, settings = read_json(record), json.loads(json.dumps(settings))
        if differing := [name for name, value in settings.items() if before.get(name) != value]:
            raise ValueError(
                f"{folder} holds an unfinished recovery with other {', '.join(differing)}; give the same to go on with "
                "it, use another folder, or delete it to start again"
            )
        yield _last(folder)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order in which they were written."""
    names = [path.name for path in folder.glob("checkpoint-*/") if path.name.removeprefix("checkpoint-").isdecimal()]
    return [folder / name for name in sorted(names, key=lambda name: int(name.removeprefix("checkpoint-")))]


def _last(folder: Path) -> Path | None:
    """The last checkpoint that is whole. The Trainer reads the best one too, so that all are checked."""
    sealed = [path for path in _checkpoints(folder) if (path / CHECKSUMS).exists()]
    for checkpoint in sealed:
        before, now = read_json(checkpoint / CHECKSUMS), _checksums(checkpoint)
        if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
            raise ValueError(
                f"{checkpoint} isn't as the recovery wrote it ({', '.join(changed)}); delete {folder} to start again"
            )
    if not sealed:
        return None
    best = read_json(sealed[-1] / "trainer_state.json")["best_model_checkpoint"]
    if best and Path(best) not in sealed:
        raise ValueError(f"{sealed[-1]} goes on from {best} too, which isn't there; delete {folder} to start again")
    return sealed[-1]


def seal(checkpoint: Path) -> None:
    """Note the checksum of every file; a checkpoint without this note is unfinished."""
    for path in checkpoint.iterdir():
        sync(path)
    _write(checkpoint / CHECKSUMS, _checksums(checkpoint))


def delete(folder: Path) -> None:
    """Delete what a recovery left in its folder, and the folder, unless something else is in it."""
    for checkpoint in _checkpoints(folder):
        shutil.rmtree(checkpoint)
    (folder / SETTINGS).unlink()
    with suppress(OSError):
        folder.rmdir()


def _checksums(checkpoint: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in checkpoint.iterdir() if path.name != CHECKSUMS}


def _write(path: Path, content: dict) -> None:
    with whole_file(path) as new:
        new.write_text(json.dumps(content), encoding="utf-8")
