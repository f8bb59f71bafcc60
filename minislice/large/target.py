"""The model that a streamed run makes, known without its weights: its config, its size, all of its files but theirs."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..architecture.configuration import SlicedConfig
from ..architecture.network import Network
from ..fusion import bare
from ..measuring.cost import size_in_bytes
from ..options import SlicingOptions, SlicingReport
from ..storage.files import INDEX, whole_file
from .source import TrainedWeights, stored_names, without_weights


def require_disk(
    folder: Path, net: Network, widths: list[int | None], options: SlicingOptions, tokens: int, dtype: torch.dtype
) -> None:
    """Raise a ValueError where the disk hasn't room for all of the new model and what the run keeps beside it."""
    D = net.trained_width
    widths = [D if k is None else k for k in widths]
    ranks = [0 if options.adapter == "none" else min(k, D - k_next) for k, k_next in pairwise(widths)]
    model = size_in_bytes(without_weights(_sliced_config(net, options, widths, ranks), dtype))
    signals = 3 * tokens * D * dtype.itemsize  # before a block, after it, and at full width
    needed = model + signals + 4 * 8 * D * D
    disk = next(parent for parent in folder.parents if parent.exists())
    room = shutil.disk_usage(disk).free + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if needed > room:
        raise ValueError(
            f"{folder} needs about {needed / 1e9:.2f} GB, of which {signals / 1e9:.2f} GB for the calibration set's "
            f"signal, and the disk has {room / 1e9:.2f} GB; free some, slice more, or save to another disk"
        )


def write_description(
    folder: Path, trained: TrainedWeights, report: SlicingReport, tokenizer: Any, notes: dict | None
) -> None:
    """Write all files of the new model but the weights, and see that these are what the config says."""
    sliced = without_weights(_sliced_config(trained.net, report.options, report.widths, report.ranks), trained.dtype)
    sliced.base.slicing, sliced.generation_config = report, trained.net.model.generation_config
    sliced.describe(notes)
    tensors = {name: t for name, t in sliced.state_dict().items() if name not in (sliced._tied_weights_keys or ())}
    expected = {stored: list(tensors[name].shape) for name, stored in stored_names(sliced, tensors).items()}
    found, files = {}, {}
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                found[name], files[name] = tensors.get_slice(name).get_shape(), path.name
    if found != expected:
        name = min(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        raise RuntimeError(f"{folder}: {name} is {found.get(name)}, and the config asks for {expected.get(name)}")
    sliced.save_description(folder, tokenizer)
    sizes = {"total_parameters": sliced.num_parameters(), "total_size": size_in_bytes(sliced)}
    with whole_file(folder / INDEX) as new:
        new.write_text(json.dumps({"metadata": sizes, "weight_map": dict(sorted(files.items()))}, indent=2) + "\n")


def _sliced_config(net: Network, options: SlicingOptions, widths: list[int], ranks: list[int]) -> SlicedConfig:
    """What slicing makes of a network's config; the network itself may be dense, or sliced up to anywhere."""
    forms = []
    for (k, k_next), rank in zip(pairwise(widths), ranks, strict=True):
        if options.adapter == "full" or k > k_next:
            forms.append("full")
        else:
            forms.append(None if rank == 0 and k == k_next else rank)
    biases = [
        [
            name
            for name, linear in block.linears.items()
            if linear.bias is not None or (name in block.readers and _shifts(block.norm_of(name)))
        ]
        for block in net.layers[0].blocks
    ]
    return SlicedConfig(
        base=net.model.config,
        widths=widths,
        adapters=forms,
        norm_eps=[bare(norm, net).eps for norm in net.norms],
        biases=biases,
        head="tied" if options.head == "tied" else "linear",
        head_bias=net.head.bias is not None or _shifts(net.final_norm),
        head_was_tied=net.model.head_was_tied,
    )


def _shifts(norm: nn.Module) -> bool:
    return getattr(norm, "bias", None) is not None
