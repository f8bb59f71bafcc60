"""What an unfinished run leaves in a folder: its settings, and seals, the checksums of its files on the disk.

A run that continues has the same settings, and checks the seal of every file that it reads.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

from ..architecture.folder import sync
from .files import checksum


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


def seal(path: Path) -> str:
    """Wait until the file is on the disk. Returns its seal."""
    sync(path)
    return checksum(path)


def require_sealed(folder: Path, seals: dict[str, str]) -> None:
    """Raise a ValueError for the first file of the folder that isn't as it was when it was sealed."""
    for name, before in seals.items():
        path = folder / name
        if not path.is_file() or checksum(path) != before:
            fault = "has changed since it was written" if path.is_file() else "is missing"
            raise ValueError(f"{path} {fault}; put it back to go on, or delete {folder} to start again")
