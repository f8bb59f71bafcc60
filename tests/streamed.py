"""Streamed runs to be tried: small models on the disk, what is done in the middle of a run, what a folder has in it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import Recipe
from safetensors.torch import load_file, save_file

from minislice.large.processes import Processes
from minislice.large.streaming import StreamedSlicer
from minislice.large.workfolder import WorkFolder

LLAMA = Recipe("llama", variant=1)  # without biases, as LLaMA is


@torch.no_grad()
def logits(model, tokens: torch.Tensor) -> torch.Tensor:
    """[sequences, tokens, vocabulary]."""
    return model(input_ids=tokens).logits


def saved(recipe: Recipe, folder: Path, dtype: torch.dtype = torch.float32, shards: bool = True) -> Path:
    recipe.model().to(dtype).save_pretrained(folder / "dense", max_shard_size=4000 if shards else "1GB")
    return folder / "dense"


def run_to(folder: Path, recipe: Recipe = LLAMA, **changes) -> dict:
    """The arguments of a run, and its model on the disk."""
    return {"source": saved(recipe, folder), "tokens": recipe.tokens(), "out": folder / "out", "width": 9} | changes


def edit(path: Path, change) -> None:
    """Change the tensors of a file, given as a dictionary."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))


def file_of(folder: Path, name: str) -> Path:
    return next(path for path in sorted(folder.glob("*.safetensors")) if any(name in key for key in load_file(path)))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_weights(one: Path, other: Path) -> None:
    expected, found = weights_of(one), weights_of(other)
    assert found.keys() == expected.keys(), f"other tensors: {sorted(found.keys() ^ expected.keys())}"
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), f"weights differ: {name}"


def parts_done(out: Path) -> int:
    return WorkFolder(out, Processes()).read().get("done", 0)


def after_part(patch: pytest.MonkeyPatch, part: int, action: Callable[[], object]) -> None:
    """Have something done in a run as soon as so many parts are finished."""
    save = StreamedSlicer.save

    def and_then(self, done):
        save(self, done)
        if done == part:
            action()

    patch.setattr(StreamedSlicer, "save", and_then)
