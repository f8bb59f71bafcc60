"""The results file: what a record says, and what makes two measurements the same (see `measuring.records`).

A record says what was measured (`setting`), of what (`revision`, `commit`), what came out (`status`: "done" with
`values`, "failed" with a `reason`, or "skipped" since the machine can't run it), and on which machine.
"""

import functools
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocol import OF_SHAPES, Profile, Setting
from transformers.utils import cached_file

from minislice.measuring import provenance, records
from minislice.storage.checkpoint import load_config, locate

SCHEMA = 1


def key_of(setting: Setting, revision: str) -> str:
    """What makes two results the same: every setting, the files it names, the model's revision, minislice's commit."""
    how = setting.how
    files = [Path(source) for source in (setting.text, how.wikitext2) if source]  # a source on the hub is no file
    if how.tasks_from:
        files += [Path(how.tasks_from) / f"{task}.jsonl" for task in how.tasks.split(",")]
    parts = [asdict(setting), *(checksum(file) for file in files if file.is_file()), revision, provenance.commit()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """Of a file's contents; it takes about half a second a GB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:32]


def revision_of(setting: Setting) -> str:
    """The revision of a setting's model; "unknown" if there is no such model, which measuring it will say."""
    if setting.measure in OF_SHAPES:
        return "random weights"
    try:
        return revision(setting.source)
    except ValueError:
        return "unknown"


@functools.cache
def revision(source: str) -> str:
    """The hub's commit of a model, or a checksum of a folder's config and weights, or of a GGUF file.

    Raises:
        ValueError: there is no such model, or the hub can't be reached.
    """
    place = locate(source)
    if not isinstance(place, Path):
        load_config(place)  # fetches it, or says in a line why it can't
        return Path(cached_file(place, "config.json")).parent.name  # the hub's cache has a folder for each commit
    files = [place] if place.is_file() else [place / "config.json", *sorted(place.glob("*.safetensors"))]
    sums = [checksum(file) for file in files]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]


def setting_of(record: dict[str, Any]) -> Setting:
    fields = record["setting"]
    return Setting(**fields | {"how": Profile(**fields["how"])})


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; a ValueError where a line is no record."""
    return records.read(path, faults)


def faults(record: dict[str, Any]) -> list[str]:
    """What keeps an object from being a record; where a field is missing or of another kind, any error."""
    if record["schema"] != SCHEMA:
        return [f"schema {record['schema']}, where this minislice reads {SCHEMA}"]
    Profile(**record["profile"]), setting_of(record)
    is_done = record["status"] == "done"
    return [] if is_done == bool(record["values"]) else [f"{record['status']}, with the values {record['values']}"]
