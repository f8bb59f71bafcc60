"""The folder of a recovery: which run it belongs to, and its checkpoints.

settings.json                   what is trained, on what, and how
checkpoint-16/                  as transformers' Trainer writes it
checkpoint-16/checksums.json    written last: the checksum of every file of the checkpoint
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..architecture.folder import sync, whole_file
from ..measuring.lock import alone
from ..storage.files import checksum, read_json

SETTINGS = "settings.json"
CHECKSUMS = "checksums.json"
STATE = "trainer_state.json"
LOCK = ".checkpoints.lock"


@contextmanager
def opened(folder: Path, settings: dict[str, Any]) -> Iterator[Path | None]:
    """The last checkpoint of this run, None where it has none yet; meanwhile no other run gets the folder.

    Raises:
        ValueError: the folder holds files of somebody else, or of a run with other settings; a file was changed;
            another run is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if strangers := [path.name for path in folder.iterdir() if not _is_ours(path)]:
        raise ValueError(
            f"{folder} has files in it that no recovery left there ({', '.join(strangers)}); give a folder of its own, "
            "or move them away"
        )
    with alone(folder / "checkpoints"):
        yield _last(folder, json.loads(json.dumps(settings)))


def _last(folder: Path, settings: dict[str, Any]) -> Path | None:
    record = folder / SETTINGS
    if not record.exists():
        if any(map(_is_checkpoint, folder.iterdir())):
            raise ValueError(f"{folder} has checkpoints and no {SETTINGS}; delete it to start again")
        _write(record, settings)
    before = read_json(record)
    if not isinstance(before, dict) or before.keys() != settings.keys():
        raise ValueError(f"{record} isn't what a recovery writes; move {folder} away, or delete it to start again")
    if differing := [name for name, value in settings.items() if before[name] != value]:
        raise ValueError(
            f"{folder} holds an unfinished recovery with other {', '.join(differing)}; give the same to go on with it, "
            "use another folder, or delete it to start again"
        )
    sealed = [path for path in folder.glob("checkpoint-*") if (path / CHECKSUMS).exists()]
    for checkpoint in sealed:
        _require_unchanged(checkpoint)
    last = max(sealed, key=lambda path: int(path.name.split("-")[1]), default=None)
    best = last and read_json(last / STATE)["best_model_checkpoint"]
    if best and Path(best) not in sealed:
        raise ValueError(f"{last} goes on from {best} too, which isn't there; delete {folder} to start again")
    return last


def seal(checkpoint: Path) -> None:
    """Note the checksum of every file, so that a checkpoint without this note is known to be unfinished."""
    for path in checkpoint.iterdir():
        sync(path)
    _write(checkpoint / CHECKSUMS, _checksums(checkpoint))


def delete(folder: Path) -> None:
    """Delete what a recovery left in its folder, and the folder, unless something else is in it."""
    for path in folder.iterdir():
        if _is_checkpoint(path):
            shutil.rmtree(path)
    for name in (SETTINGS, LOCK):
        (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


def _is_ours(path: Path) -> bool:
    return path.name in (SETTINGS, LOCK) or _is_checkpoint(path)


def _is_checkpoint(path: Path) -> bool:
    return path.name.startswith("checkpoint-") and path.name[11:].isdecimal() and path.is_dir()


def _require_unchanged(checkpoint: Path) -> None:
    noted, found = read_json(checkpoint / CHECKSUMS), _checksums(checkpoint)
    if noted != found:
        noted = noted if isinstance(noted, dict) else {}
        changed = sorted(name for name in noted.keys() | found.keys() if noted.get(name) != found.get(name))
        raise ValueError(
            f"{checkpoint} isn't as the recovery wrote it ({', '.join(changed) or CHECKSUMS}); delete "
            f"{checkpoint.parent} to start again"
        )


def _checksums(checkpoint: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted(checkpoint.iterdir()) if path.name != CHECKSUMS}


def _write(path: Path, content: dict) -> None:
    with whole_file(path) as new:
        new.write_text(json.dumps(content), encoding="utf-8")


def fingerprint(tensors: list[Tensor]) -> str:
    """Of sequences of tokens: every id, and where each sequence ends."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
