"""What an unfinished run leaves in a folder: its settings, and its files' states (sizes and times of change).

A run that continues has the same settings, and finds the files that it reads as they were left.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any


def in_words(settings: dict[str, Any]) -> dict[str, str]:
    """Settings in the form that is stored: in Python's words, and in place of many words a checksum."""
    words = {name: repr(value) for name, value in settings.items()}
    return {name: text if len(text) < 80 else sha256(text.encode()).hexdigest()[:16] for name, text in words.items()}


def require_settings(folder: Path, before: dict[str, str], settings: dict[str, str]) -> None:
    """Raise a ValueError where the folder's unfinished run had other settings, and say which."""
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing:
        described = "; ".join(f"{name} {before.get(name)} there, {settings[name]} here" for name in differing)
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
