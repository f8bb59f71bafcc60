"""Files that survive a kill or a power cut: written beside, made durable, renamed; and which file has which tensor."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"  # of a model whose weights are in several files


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with whole_file(path) as new:
        save_file(tensors, new, metadata={"format": "pt"})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path`, whole and on the disk, when the block ends.

    Raises:
        OSError: the system refused a write; the message names `path`.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        yield new
        sync(new)
        new.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"can't write {path}: {error}") from error


def checksum(path: Path) -> str:
    """Of a file's contents; half a second a GB where the processor has instructions for SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:32]


def sync(path: Path) -> None:
    """Have what was written to a file, or a folder's list of files, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tensor_files(folder: Path) -> dict[str, Path]:
    """The safetensors file of each tensor of the model in a folder, by the tensor's name; every file is opened.

    Raises:
        ValueError: a file is missing, damaged or cut off, or the index says of a tensor that it is in another file.
    """
    indexed = {}
    if (index := folder / INDEX).is_file():
        try:
            indexed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(indexed.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is damaged: {error}") from error
    else:
        names = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    files = {}
    for path in (folder / name for name in names):
        if not path.is_file():
            raise ValueError(f"{path} is missing; {INDEX} names it")
        try:
            with safe_open(path, framework="pt") as tensors:
                files.update(dict.fromkeys(tensors.keys(), path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or cut off: {error}") from error
    for key, name in indexed.items():
        if files.get(key) != folder / name:
            found = f"it is in {files[key].name}" if key in files else "it isn't there"
            raise ValueError(f"{index} says that {key} is in {name}, but {found}")
    return files
