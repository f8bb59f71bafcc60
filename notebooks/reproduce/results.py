"""The results file: what a record says, and what makes two measurements the same (see `measuring.records`).

A record says what was measured (`setting`), of what (`revision`, `commit`), what came out (`values`, or `reason`) and
on which machine.
"""

import functools
import hashlib
import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocol import COST, FAMILIES, Profile, Setting

from minislice.measuring import records
from minislice.storage.checkpoint import load_config, locate
from minislice.storage.files import checksum

SCHEMA = 1
STATUSES = ("done", "failed", "skipped")  # "skipped": this machine can't run it, so it wasn't tried


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


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a file in their order, of each key the last; none where there is no file.

    Raises:
        ValueError: a line is no record.
    """
    return records.read(path, faults)


def faults(record: dict[str, Any]) -> list[str]:
    """What contradicts itself in a record, in words; where a field is missing or of another kind, any error."""
    if record["schema"] != SCHEMA:
        return [f"schema {record['schema']}, where this minislice reads {SCHEMA}"]
    Profile.from_json(record["profile"])
    Setting.from_json(record["setting"])
    list(map(float, [*record["values"].values(), *record["errors"].values()]))
    status, done, texts = record["status"], record["status"] == "done", [*how(record).values(), record["when"]]
    contradictions = {
        f"family {record['family']!r}": record["family"] not in FAMILIES,
        f"status {status!r}": status not in STATUSES,
        f"{status} with {len(record['values'])} values": done != bool(record["values"]),
        f"{status} with the reason {record['reason']!r}": done == bool(record["reason"]),
        "a number where a text should be": not all(isinstance(text, str) for text in texts),
    }
    return [what for what, is_so in contradictions.items() if is_so]


def how(record: dict[str, Any]) -> dict[str, str]:
    """How a setting was measured, by column of the report; the rest is in the results file, under the record's key."""
    facts, setting = record["facts"], record["setting"]
    dense, sliced, peak = (facts.get(name) for name in ("dense parameters", "parameters", "peak memory, bytes"))
    result = "" if record["status"] == "done" else f" **{record['status']}**: {record['reason']}"
    what = f"{setting['model']} {record['revision']}, {setting['percent']}%, seed {setting['seed']}"
    return {
        "key": record["key"],
        "what": f"{what}, {setting['measure']} in {setting['dtype']}{result}",
        "of parameters": f"{sliced / dense:.3f}" if sliced and dense else "-",
        "calibration": _tokens(facts.get("calibration")),
        "evaluation": _tokens(facts.get("evaluation")),
        "seconds": f"{facts['seconds']['all']:.0f}",
        "peak memory": f"{peak / 1e9:.2f} GB" if peak else "-",
        "where": f"{record['hardware']}; minislice at {record['commit']}, torch {record['versions']['torch']}",
        "command": f"`{record['command']}`",
    }


def _tokens(described: dict[str, Any] | None) -> str:
    if described is None:
        return "-"
    return f"{described['text']} {described['sequences']} x {described['seqlen']} ({described['tokens']})"
