"""A file of results, one JSON record a line: appended and on the disk before the next is measured.

A kill loses one result. A line that was cut off counts as never written. Every record has a "key", which says what was
measured, and a "status"; of each key the last record counts, and what is "done" needn't be measured again.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..architecture.folder import require_file
from .lock import alone

Faults = Callable[[dict[str, Any]], list[str]]  # what keeps an object from being a record, in words


def read(path: str | os.PathLike, faults: Faults, command: str) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; none where there is no file.

    Args:
        command: that writes such files, for the message.

    Raises:
        ValueError: the file has lines, and none of them is a record.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    records = [record for line in lines if (record := _record(line, faults)) is not None]
    if not records and any(line.strip() for line in lines[:-1]):
        raise ValueError(f"{path} holds no results of `minislice {command}`: none of its lines is a record")
    return list({record["key"]: record for record in records}.values())


def require_results(path: str | os.PathLike, reads: Iterable[Path] = ()) -> Path:
    """The path of a file to append results to; see `folder.require_file`."""
    return require_file(path, reads=reads, kind=("a results file", '{"schema": 1, "key": "'))


class Records:
    """A file that this process alone appends to (see `opened`), or, without a path, a list in memory."""

    def __init__(self, path: Path | None = None, found: list[dict[str, Any]] | None = None):
        self.path = path
        self.finished = {record["key"]: record for record in found or [] if record["status"] == "done"}

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, and have it on the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        if self.path is not None:
            with open(self.path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        if record["status"] == "done":
            self.finished[record["key"]] = record


@contextmanager
def opened(path: str | os.PathLike, faults: Faults, command: str) -> Iterator[Records]:
    """The file, to append to; what a killed run has left of its last line is dropped.

    Raises:
        ValueError: another run has it open; its folder isn't there; it holds something else.
    """
    path = require_results(path)
    with alone(path):
        records = Records(path, read(path, faults, command))
        if path.is_file():
            _cut(path)
        yield records


def _cut(path: Path) -> None:
    """Shorten the file to its last whole line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _record(line: bytes, faults: Faults) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and not faults(record) else None
