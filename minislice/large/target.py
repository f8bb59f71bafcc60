"""The model that a streamed run makes, known without its weights: its config, its size, all of its files but theirs."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.core_model_loading import revert_weight_conversion

from ..architecture.configuration import SlicedConfig
from ..architecture.folder import whole_file
from ..architecture.modeling import SlicedForCausalLM, description
from ..architecture.network import network
from ..fusion import fuse
from ..measuring.cost import size_in_bytes
from ..options import SlicingOptions
from ..report import SlicingReport
from ..storage.files import INDEX
from .source import TrainedWeights, without_weights


class SlicedShapes:
    """The shapes of the sliced model: the trained one's, fused without its weights, but for what slicing cuts."""

    def __init__(self, trained: TrainedWeights, options: SlicingOptions):
        self.trained, self.options = trained, options
        empty = without_weights(trained.net.model.config, trained.dtype, trained.trust_remote_code)
        fused = fuse(empty, options.head == "tied")
        network(fused).drop(options.drop)
        self.fused = description(fused)

    def model(self, widths: list[int], adapters: list[str | int | None]) -> SlicedForCausalLM:
        """The sliced model without weights; `adapters` as `SlicedConfig` says them."""
        head = "linear" if self.options.head == "own" else self.options.head
        neurons = self.options.neurons_of(self.fused["neurons"])
        sizes = {"widths": widths, "adapters": adapters, "neurons": neurons, "head": head}
        config = SlicedConfig(**{**self.fused, **sizes})
        return without_weights(config, self.trained.dtype)


def require_disk(folder: Path, shapes: SlicedShapes, widths: list[int | None], tokens: int) -> None:
    """Raise a ValueError where the disk hasn't room for all of the new model and what the run keeps beside it."""
    D, dtype = shapes.trained.net.trained_width, shapes.trained.dtype
    widths = [D if k is None else k for k in widths]
    adapters = shapes.options.largest_adapters(D, widths)
    # Before a block, after it, and at full width; to repair, the dense network's before and after it.
    signals = (5 if shapes.options.repair else 3) * tokens * D * dtype.itemsize
    needed = size_in_bytes(shapes.model(widths, adapters)) + signals + 4 * 8 * D * D
    room = shutil.disk_usage(folder).free
    room += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())  # what an earlier run has done
    if needed > room:
        raise ValueError(
            f"{folder} needs about {needed / 1e9:.2f} GB, of which {signals / 1e9:.2f} GB for the calibration set's "
            f"signal, and the disk has {room / 1e9:.2f} GB; free some, slice more, or save to another disk"
        )


def write_description(
    folder: Path,
    shapes: SlicedShapes,
    report: SlicingReport,
    adapters: list[str | int | None],
    tokenizer: Any,
    notes: dict | None,
) -> None:
    """Write all files of the new model but the weights, and see that these are what the config says."""
    sliced = shapes.model(report.widths, adapters)
    sliced.base.slicing, sliced.generation_config = report, shapes.trained.net.model.generation_config
    sliced.describe(notes)
    tensors = {name: t for name, t in sliced.state_dict().items() if name not in (sliced._tied_weights_keys or ())}
    expected = {name: list(tensor.shape) for name, tensor in revert_weight_conversion(sliced, tensors).items()}
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
