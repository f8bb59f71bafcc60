"""A file of results, one JSON record a line; it is on the disk, whole, before the next record is measured.

Every record has a "key", which says what was measured, and a "status"; the last record of a key counts, and what is
"done" needn't be measured again.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..architecture.folder import require_file, whole_file
from .lock import alone

BEGINS = '{"schema": 1, "key": "'  # every line
Faults = Callable[[dict[str, Any]], list[str]]  # what keeps an object from being a record, in words


def read(path: str | os.PathLike, faults: Faults) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; none where there is no file."""
    path, records = Path(path), {}
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else [], 1):
        if line.strip():
            try:
                record = json.loads(line)
                reasons = faults(record)
            except Exception as error:  # of whatever stands where a record should
                reasons = [f"{type(error).__name__}: {error}"]
            if reasons:
                fault = f"{path} is not a results file of minislice: line {number}: {reasons[0][:200]}"
                raise ValueError(f"{fault}; if only this line is wrong, delete it")
            records[record["key"]] = record
    return list(records.values())


def require_results(path: str | os.PathLike, reads: Iterable[Path] = ()) -> Path:
    """The path of a file to write results to; see `folder.require_file`."""
    return require_file(path, reads=reads, kind=("a results file", BEGINS))


class Records:
    """The records of a file that this process alone writes (see `opened`), or, without a path, of this process."""

    def __init__(self, path: Path | None = None, records: Iterable[dict[str, Any]] = ()):
        self.path, self.records = path, {record["key"]: record for record in records}
        self.finished = {key: record for key, record in self.records.items() if record["status"] == "done"}

    def append(self, record: dict[str, Any]) -> None:
        """Write the file with a record more, in place of one with the same key."""
        self.records[record["key"]] = record
        if self.path is not None:
            with whole_file(self.path) as new:
                lines = [json.dumps(line, allow_nan=False) + "\n" for line in self.records.values()]
                new.write_text("".join(lines), encoding="utf-8")
        if record["status"] == "done":
            self.finished[record["key"]] = record


@contextmanager
def opened(path: str | os.PathLike, faults: Faults) -> Iterator[Records]:
    """The file, to write to; a ValueError if another run has it open, or it holds something else."""
    path = require_results(path)
    with alone(path):
        yield Records(path, read(path, faults))
