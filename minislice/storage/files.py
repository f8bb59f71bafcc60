"""The files of a model: which of them has which tensor."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

INDEX = "model.safetensors.index.json"  # of a model whose weights are in several files
LFS = b"version https://git-lfs.github.com/spec/"  # how a pointer begins


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # by torch's name where torch has it, else by the file's


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model's folder, by name: from safetensors files, or else from PyTorch's older .bin files."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index, single = folder / f"{name}.index.json", folder / name
        if files := _named_by(index) if index.is_file() else [single] if single.is_file() else []:
            return {name: tensor for file in files for name, tensor in _tensors_in(file).items()}
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    raise ValueError(
        f"{folder} has no weights: no model.safetensors, and no {INDEX}, which shards need (get that file too); it has "
        f"{', '.join(names) or 'no such files'}. If one file is the whole model, rename it to model.safetensors"
    )


def require_fetched(path: Path) -> None:
    """Raise a ValueError for a file, or for a folder with a file, that is a Git LFS pointer."""
    for file in filter(Path.is_file, path.iterdir() if path.is_dir() else [path]):
        with open(file, "rb") as content:
            if content.read(len(LFS)) == LFS:
                raise ValueError(f"{file} is a Git LFS pointer, not the file itself; run 'git lfs pull' there")


def _named_by(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise ValueError(f"{index} has no weight_map, which names the files; get that file again")
    names = {*files.values()}
    if missing := names - {path.name for path in index.parent.iterdir()}:
        raise ValueError(f"{index} names {missing.pop()!r}, which isn't in the same folder; get that file too")
    return [index.parent / name for name in sorted(names)]


def _tensors_in(path: Path) -> dict[str, Stored]:
    """The tensors in a file, by name, without their contents. Of a pickle torch reads tensors and nothing else."""
    dtypes = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # torch's names, by the file's
    try:
        if path.suffix == ".bin":
            tensors = torch.load(path, map_location="meta", weights_only=True)
            described = {name: (x.shape, str(x.dtype).removeprefix("torch.")) for name, x in tensors.items()}
        else:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                described = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
        return {
            name: Stored(path, tuple(shape), dtypes.get(dtype, dtype)) for name, (shape, dtype) in described.items()
        }
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} is damaged, cut off, or holds no tensors; get the safetensors file again") from error


def read_json(path: Path) -> dict:
    """The object in a JSON file, or a ValueError with the file's name."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
