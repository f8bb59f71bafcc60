"""The results file: what a record says, and what makes two measurements the same (see `measuring.records`).

A record says what was measured (`setting`), of what (`revision`, `commit`), what came out (`values`, or `reason`) and
on which machine.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocol import COST, Setting

from minislice.measuring import records
from minislice.storage.checkpoint import load_config, locate
from minislice.storage.files import checksum

SCHEMA = 1
STATUSES = ("done", "failed", "skipped")  # "skipped" is not tried, since it can't run on this machine
TEXTS = ("key", "status", "family", "revision", "commit", "hardware", "command", "when")
DICTS = ("profile", "setting", "values", "errors", "facts", "versions")
FIELDS = dict.fromkeys(TEXTS, str) | dict.fromkeys(DICTS, dict) | {"schema": int, "reason": (str, type(None))}


def key_of(setting: Setting, revision: str, commit: str) -> str:
    """What makes two results the same: every setting, the files it names, the model's revision, minislice's commit."""
    text = json.dumps([asdict(setting), *checksums(setting), revision, commit], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checksums(setting: Setting) -> list[str]:
    """One for each text and each task's file that the setting names; a source that isn't a file here has none."""
    files = [Path(source) for source in (setting.calibration, setting.recovery, setting.evaluation) if source]
    if setting.tasks_from:
        files += [Path(setting.tasks_from) / f"{task}.jsonl" for task in setting.tasks or ()]
    return [checksum(file) for file in files if file.is_file()]


def revision_of(setting: Setting) -> str:
    """The revision of a setting's model; costs are measured on random weights."""
    return "random weights" if setting.measure in COST.values() else revision(setting.source)


@functools.cache
def revision(source: str) -> str:
    """The hub's commit of a model, or a checksum of a folder's config and weights.

    Raises:
        ValueError: there is no such model, or the hub can't be reached.
    """
    place = locate(source)
    if not isinstance(place, Path):
        return getattr(load_config(place), "_commit_hash", None) or "unknown"
    sums = [checksum(path) for path in (place / "config.json", *sorted(place.glob("*.safetensors")))]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]


def opened(path: str | os.PathLike) -> AbstractContextManager[records.Records]:
    """The file, to append to; see `records.opened`."""
    return records.opened(path, faults)


def read(
    path: str | os.PathLike, use: Callable[[dict[str, Any]], object] = lambda record: None
) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; none where there is no file.

    Args:
        use: is given each record, and raises an error where it can't be used.

    Raises:
        ValueError: a line is no record, or can't be used.
    """
    return records.read(path, lambda record: faults(record) or use(record) or [])


def faults(record: dict[str, Any]) -> list[str]:
    """What keeps a record from being one, in words."""
    wrong = [
        f"{name} is {record.get(name)!r}" for name, kind in FIELDS.items() if not isinstance(record.get(name), kind)
    ]
    if wrong:
        return wrong
    status, done = record["status"], record["status"] == "done"
    contradictions = {
        f"schema {record['schema']}, where this minislice reads {SCHEMA}": record["schema"] != SCHEMA,
        f"status {status!r}": status not in STATUSES,
        f"{status} with {len(record['values'])} values": done != bool(record["values"]),
        f"{status} with the reason {record['reason']!r}": done == bool(record["reason"]),
    }
    return [what for what, is_so in contradictions.items() if is_so]
