"""What a line of results.jsonl says (see `measuring.records`).

A record says what was measured (`setting`), of what (`revision`, `commit`), what came out (`values`, or `reason`) and
on which machine; `read` gives them back. A line that was cut off counts as never written.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocol import Setting

from minislice.measuring import records

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
    """What makes two results the same: every setting, the files it names, the model's revision, minislice's commit."""
    text = json.dumps([asdict(setting), *checksums(setting), revision, commit], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checksums(setting: Setting) -> list[str]:
    """One for each text and each task's file that the setting names; a source that isn't a file here has none."""
    folder = Path(setting.tasks_from) if setting.tasks_from else None
    files = [folder / f"{task}.jsonl" for task in setting.tasks or ()] if folder else []
    files += [Path(source) for source in (setting.calibration, setting.recovery, setting.evaluation) if source]
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files if file.is_file()]


def read(
    path: str | os.PathLike, use: Callable[[dict[str, Any]], object] = lambda record: None
) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; none where there is no file.

    Args:
        use: is given each record, and raises an error where it can't be used.

    Raises:
        ValueError: a line is no record, or can't be used.
    """

    def faults_in_use(record: dict[str, Any]) -> list[str]:
        found = faults(record)
        if not found:
            use(record)
        return found

    return records.read(path, faults_in_use)


def opened(path: str | os.PathLike) -> AbstractContextManager[records.Records]:
    """The file, to append to; see `records.opened`."""
    return records.opened(path, faults)


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
