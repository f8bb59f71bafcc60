"""The model that a streamed run makes, without its weights: its config, its size, all of its other files."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..architecture.folder import whole_file
from ..architecture.modeling import SlicedForCausalLM, without_memory
from ..measuring.cost import size_in_bytes
from ..measuring.shapes import config_after
from ..options import SlicingOptions
from ..report import SlicingReport
from ..storage.files import INDEX
from .source import TrainedWeights


def sliced_shapes(
    trained: TrainedWeights, options: SlicingOptions, widths: list[int], adapters: list
) -> SlicedForCausalLM:
    """The sliced model without weights. `adapters` of the blocks that are not dropped, as `SlicedConfig` has them."""
    config = config_after(trained.empty_model(), options, widths, adapters)
    return without_memory(config, dtype=trained.dtype)


def require_disk(folder: Path, trained: TrainedWeights, report: SlicingReport, widths: list[int | None]) -> None:
    """Raise a ValueError if the disk hasn't room for the new model and for what the run keeps beside it."""
    D, options = report.trained_width, report.options
    widths = [D if k is None else k for k in widths]
    model = sliced_shapes(trained, options, widths, options.largest_adapters(D, widths))
    # The signal before a block, behind it, and at full width; to repair, the dense network's before and behind it.
    signals = (5 if options.repair else 3) * report.calibration_tokens * D * trained.dtype.itemsize
    needed = size_in_bytes(model) + signals + 4 * 8 * D * D
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())  # by an earlier run
    room = shutil.disk_usage(folder).free + written
    if needed > room:
        raise ValueError(
            f"{folder} needs about {needed / 1e9:.2f} GB, of which {signals / 1e9:.2f} GB for the calibration set's "
            f"signal, and the disk has {room / 1e9:.2f} GB; free some, slice more, or save to another disk"
        )


def write_description(folder: Path, sliced: SlicedForCausalLM, tokenizer: Any, notes: dict[str, Any] | None) -> None:
    """Write all files of the new model except the weights, which are there."""
    sliced.describe(notes)
    sliced.save_description(folder, tokenizer)
    files = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), path.name)
    sizes = {"total_parameters": sliced.num_parameters(), "total_size": size_in_bytes(sliced)}
    with whole_file(folder / INDEX) as new:
        new.write_text(json.dumps({"metadata": sizes, "weight_map": dict(sorted(files.items()))}, indent=2) + "\n")
