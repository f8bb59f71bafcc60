"""results.jsonl: one record a line, appended and on the disk before the next row begins, so that a kill loses one row.

A record says what was measured (`setting`), of what (`revision`, `commit`), what came out (`values`, or `reason`) and
on which machine; `read` gives them back. A line that was cut off counts as never written.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .protocol import Setting

SCHEMA = 1
# What every record has, and of what type.
FIELDS: dict[str, type | tuple] = {
    "schema": int,
    "key": str,
    "status": str,  # "done", "failed", or "skipped": not tried, since it can't run here
    "reason": (str, type(None)),  # of the last two
    "family": str,
    "profile": dict,
    "setting": dict,
    "revision": str,  # of the model
    "commit": str,  # of minislice
    "values": dict,  # metric: number; "done" has some
    "errors": dict,  # metric: its standard error
    "facts": dict,  # widths, parameters, tokens, seconds, memory ...
    "versions": dict,
    "hardware": str,
    "command": str,
    "when": str,
}


def key_of(setting: Setting, revision: str, commit: str) -> str:
    """What makes two results the same: every setting, the model's revision, minislice's commit."""
    text = json.dumps([asdict(setting), revision, commit], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; none where there is no file.

    Raises:
        ValueError: the file has lines, and none of them is a record.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    records = [record for line in lines if (record := _record(line)) is not None]
    if not records and any(line.strip() for line in lines[:-1]):
        raise ValueError(f"{path} holds no results of `minislice reproduce`: none of its lines is a record")
    return list({record["key"]: record for record in records}.values())


class Results:
    """A file that this process alone appends to; see `opened`."""

    def __init__(self, path: Path):
        self.path, self.finished = path, {}
        for record in read(path):
            if record["status"] == "done":
                self.finished[record["key"]] = record

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, and have it on the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        if record["status"] == "done":
            self.finished[record["key"]] = record


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Results]:
    """The file, to append to; what a killed run has left of its last line is dropped.

    Raises:
        ValueError: another run has it open; its folder isn't there; it holds something else.
    """
    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.resolve().parent}")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another run writes into {path}; wait for it, or give this one a file of its own with --out"
        ) from error
    try:
        results = Results(path)
        if path.is_file():
            _cut(path)
        yield results
    finally:
        lock.release()


def _cut(path: Path) -> None:
    """Shorten the file to its last whole line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and not faults(record) else None


def faults(record: dict[str, Any]) -> list[str]:
    """What keeps a record from being one, in words."""
    found = [
        f"{name} is {record.get(name)!r}"
        for name, kind in FIELDS.items()
        if name not in record or not isinstance(record[name], kind)
    ]
    if not found and record["schema"] != SCHEMA:
        found.append(f"schema {record['schema']}, this minislice writes and reads {SCHEMA}")
    if not found and record["status"] not in ("done", "failed", "skipped"):
        found.append(f"status {record['status']!r}")
    if not found and (record["status"] == "done") != bool(record["values"]):
        found.append(f"{record['status']} with {len(record['values'])} values")
    if not found and (record["status"] == "done") == bool(record["reason"]):
        found.append(f"{record['status']} with the reason {record['reason']!r}")
    return found
