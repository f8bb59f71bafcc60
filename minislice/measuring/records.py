"""A file of results, one JSON record a line: each is on the disk before the next is measured.

Every record has a "key", which says what was measured, and a "status"; the last record of a key counts, and what is
"done" needn't be measured again. A line that a kill cut off counts as never written.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..architecture.folder import require_file
from .lock import alone

BEGINS = '{"schema": 1, "key": "'  # every line
Faults = Callable[[dict[str, Any]], list[str]]  # what keeps an object from being a record, in words


def read(path: str | os.PathLike, faults: Faults) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; none where there is no file."""
    path = Path(path)
    lines, records = path.read_bytes().split(b"\n") if path.is_file() else [b""], {}
    if _is_torn(lines[-1]):
        lines.pop()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
                reasons = faults(record)
            except Exception as error:  # of whatever stands where a record should
                reasons = [f"{type(error).__name__}: {error}"]
            if reasons:
                raise ValueError(f"{path} is not a results file of minislice: line {number}: {reasons[0][:200]}")
            records[record["key"]] = record
    return list(records.values())


def require_results(path: str | os.PathLike, reads: Iterable[Path] = ()) -> Path:
    """The path of a file to append results to; see `folder.require_file`."""
    return require_file(path, reads=reads, kind=("a results file", BEGINS))


class Records:
    """A file that this process alone appends to (see `opened`), or, without a path, a list in memory."""

    def __init__(self, path: Path | None = None, records: Iterable[dict[str, Any]] = ()):
        self.path = path
        self.finished = {record["key"]: record for record in records if record["status"] == "done"}

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, and wait until it is on the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        if self.path is not None:
            with open(self.path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        if record["status"] == "done":
            self.finished[record["key"]] = record


@contextmanager
def opened(path: str | os.PathLike, faults: Faults) -> Iterator[Records]:
    """The file, to append to; a ValueError if another run has it open, or it holds something else."""
    path = require_results(path)
    with alone(path):
        records = Records(path, read(path, faults))
        content = path.read_bytes() if path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        if _is_torn(content[whole:]):
            os.truncate(path, whole)
        elif whole < len(content):  # an editor has left the last line without its newline
            with open(path, "ab") as file:
                file.write(b"\n")
        yield records


def _is_torn(line: bytes) -> bool:
    """Whether a killed run was writing this line: it begins as ours do, and isn't JSON."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(BEGINS.encode())
    return False
