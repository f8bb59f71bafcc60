"""The files of a model: which of them has which tensor."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..architecture.folder import whole_file

INDEX = "model.safetensors.index.json"  # of a model whose weights are in several files
LFS = b"version https://git-lfs.github.com/spec/"  # how a pointer begins


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with whole_file(path) as new:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, new, metadata={"format": "pt"})


def checksum(path: Path) -> str:
    """A checksum of a file's contents; it takes about half a second a GB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # by torch's name where torch has it, else by the file's


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the model in a folder, by name: from safetensors files, or else from PyTorch's older .bin files.

    Raises:
        ValueError: a file is missing, damaged or holds something else than tensors, or the index is wrong.
    """
    found = _stored(folder, "model.safetensors", _in_safetensors) or _stored(folder, "pytorch_model.bin", _in_bin)
    if not found:
        _refuse_what_is_there(folder)
    return found


def _refuse_what_is_there(folder: Path) -> None:
    """Raise a ValueError for a folder without the weight files that transformers looks for."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    if shards := [name for name in names if re.search(r"-of-\d+\.", name)]:
        index = f"{shards[0].split('-')[0]}{Path(shards[0]).suffix}.index.json"
        reason = f"has shards such as {shards[0]} and no {index} to say which tensor is where; get that file too"
    elif names:
        wanted = "model.safetensors" if names[0].endswith(".safetensors") else "pytorch_model.bin"
        reason = f"has no {wanted}, but {', '.join(names)}; if that is the whole model, rename it to {wanted}"
    else:
        reason = "has no weights: no model.safetensors"
    raise ValueError(f"{folder} {reason}")


def require_fetched(path: Path) -> None:
    """Raise a ValueError for a file, or for a folder with a file, that is a Git LFS pointer."""
    for file in path.iterdir() if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as content:
                if content.read(len(LFS)) == LFS:
                    raise ValueError(f"{file} is a Git LFS pointer, not the file itself; run 'git lfs pull' there")


def _stored(folder: Path, single: str, read: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    """The tensors in one file of this name, or in the files that its index names."""
    index, names = folder / f"{single}.index.json", [single] if (folder / single).is_file() else []
    files = {}
    if index.is_file():
        fields = read_json(index)
        files = fields.get("weight_map") if isinstance(fields, dict) else None
        if not isinstance(files, dict):
            raise ValueError(f"{index} is damaged: it has no object 'weight_map'")
        if bad := [name for name in files.values() if not isinstance(name, str) or Path(name).parts != (name,)]:
            raise ValueError(f"{index} is damaged: a tensor must be in a file of the same folder, got {bad[0]!r:.40}")
        names = sorted({*files.values()})
    tensors = {}
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; {index.name} names it")
        tensors |= read(folder / name)
    for key, name in files.items():
        if key not in tensors or tensors[key].path.name != name:
            found = f"it is in {tensors[key].path.name}" if key in tensors else "it isn't there"
            raise ValueError(f"{index} says that {key} is in {name}, but {found}")
    return tensors


def _in_safetensors(path: Path) -> dict[str, Stored]:
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # torch's, by the file's
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {
                name: Stored(path, tuple(part.get_shape()), names.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error


def _in_bin(path: Path) -> dict[str, Stored]:
    """The tensors of a pickle, without their contents; torch unpickles nothing else."""
    try:
        tensors = torch.load(path, map_location="meta", weights_only=True)
        return {
            name: Stored(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        }
    except Exception as error:  # a pickle can fail in any way
        raise ValueError(
            f"{path} is damaged, or holds something else than tensors, which minislice doesn't run; get the model's "
            "safetensors files"
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file, or a ValueError with the file's name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
