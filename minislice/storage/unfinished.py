"""What an unfinished run leaves in a folder: its settings, and its files' states (sizes and times of change).

A run that continues has the same settings, and finds the files that it reads as they were left.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..architecture.folder import whole_file
from .files import read_json

SETTINGS = "settings.json"


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Begin a run in a folder, or continue the folder's; its settings are stored in Python's words, or as checksums.

    Raises:
        ValueError: the folder holds files and no run, or a run that had other settings; the message says which.
    """
    record, words = folder / SETTINGS, {name: repr(value) for name, value in settings.items()}
    words = {name: text if len(text) < 80 else sha256(text.encode()).hexdigest()[:16] for name, text in words.items()}
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not files or (files == [SETTINGS] and read_json(record).keys() == words.keys()):  # nothing is done yet
        with whole_file(record) as new:
            new.write_text(json.dumps(words), encoding="utf-8")
    elif not record.exists():
        raise ValueError(
            f"{folder} has files in it ({', '.join(files)}) and no {SETTINGS} of an unfinished run; move it away, or "
            "use another folder"
        )
    before = read_json(record)
    if differing := [name for name in words if before.get(name) != words[name]]:
        described = "; ".join(f"{name} {before.get(name)} there, {words[name]} here" for name in differing)
        raise ValueError(
            f"{folder} holds an unfinished run with other settings ({described}); give the same settings to go on with "
            "it, use another folder, or delete it to start again"
        )


def state_of(path: Path) -> tuple[int, int] | None:
    """The size and the time of change of a file; None where it is gone."""
    status = path.stat() if path.is_file() else None
    return status and (status.st_size, status.st_mtime_ns)


def require_unchanged(folder: Path, states: dict[str, tuple[int, int]]) -> None:
    """Raise a ValueError for the first file of the folder that isn't as it was."""
    for name, before in states.items():
        path = folder / name
        if (now := state_of(path)) != before:
            fault = "has changed since it was written" if now else "is missing"
            raise ValueError(f"{path} {fault}; put it back to go on, or delete {folder} to start again")
