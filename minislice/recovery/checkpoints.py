"""A folder of checkpoints: which run it belongs to, and the last one that is whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..storage.files import whole_file

SETTINGS = "settings.json"


def open_folder(folder: Path, settings: dict[str, Any]) -> Path | None:
    """The last checkpoint of this run; None where it has none yet.

    Raises:
        ValueError: the folder belongs to a run with other settings.
    """
    settings = json.loads(json.dumps(settings))
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / SETTINGS
    if not record.exists():
        if any(folder.iterdir()):
            raise ValueError(f"{folder} has files in it that no recovery left there; give a folder of its own")
        with whole_file(record) as new:
            new.write_text(json.dumps(settings), encoding="utf-8")
    before = json.loads(record.read_text(encoding="utf-8"))
    if differing := [name for name, value in settings.items() if before.get(name) != value]:
        raise ValueError(
            f"{folder} holds an unfinished recovery with other {', '.join(differing)}; give the same to go on with it, "
            "use another folder, or delete it to start again"
        )
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((path for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    """The state is what the Trainer writes last."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def fingerprint(tensors: list[Tensor]) -> str:
    """Of sequences of tokens: every id, and where each sequence ends."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """Of a model: the shape and the sum of every parameter."""
    with torch.no_grad():
        sums = [(name, *part.shape, part.double().sum().item()) for name, part in model.named_parameters()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]
