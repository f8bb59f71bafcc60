"""Where a result of the paper's tables comes from: besides `measuring.provenance`, the model's revision."""

import functools
import hashlib
from pathlib import Path

from protocol import Setting

from minislice.measuring.provenance import commit, hardware, hash_of, versions
from minislice.storage.checkpoint import load_config, locate

__all__ = ["commit", "hardware", "hash_of", "revision", "revision_of", "versions"]

NO_WEIGHTS = "random weights"


@functools.cache
def revision(source: str) -> str:
    """Of a model: the hub's commit, or a checksum of a folder's config and weights.

    Raises:
        ValueError: there is no such model, or the hub can't be reached.
    """
    place = locate(source)
    if not isinstance(place, Path):
        return getattr(load_config(place), "_commit_hash", None) or "unknown"
    digest = hashlib.sha256()
    for path in [place / "config.json", *sorted(place.glob("*.safetensors"))]:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:12]


def revision_of(setting: Setting) -> str:
    """The revision of a setting's model; costs are measured on random weights."""
    return NO_WEIGHTS if setting.measure in ("inference", "products", "time") else revision(setting.source)
