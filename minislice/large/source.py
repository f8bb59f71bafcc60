"""A trained model that stays on the disk: its shapes in memory, its weights read module by module."""

import hashlib
import os
import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ..architecture.network import network
from ..storage.checkpoint import load_config, locate
from ..storage.files import tensor_files


def without_weights(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a config with every parameter on torch's meta device: its shape, no weights."""
    with init_empty_weights(include_buffers=False):  # buffers are computed, RoPE's tables: no file holds them
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.tie_weights()  # each parameter that was set has become one of its own
    return model


def stored_names(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, str]:
    """What transformers calls these tensors of a model in its files, by their names in the model."""
    names = {id(tensor): name for name, tensor in tensors.items()}
    return {names[id(tensor)]: stored for stored, tensor in revert_weight_conversion(model, tensors).items()}


def local_folder(source: str | os.PathLike) -> Path:
    """The folder of a model: of a name on the hub, where its files are kept once fetched.

    Raises:
        ValueError: there is none.
    """
    place = locate(source)
    if isinstance(place, Path):
        return place
    try:
        return Path(snapshot_download(place, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source!r} is no folder here, and can't be fetched from the hub: {error}") from error


class TrainedWeights:
    """The trained model on disk, and the same model without weights (on torch's meta device) to bring them into.

    Raises:
        ValueError: a file is missing, damaged, or contradicts the config.
    """

    def __init__(self, source: str | os.PathLike, dtype: torch.dtype | str):
        self.folder = local_folder(source)
        config = load_config(self.folder)
        self.files = tensor_files(self.folder)
        if not self.files:
            raise ValueError(f"{self.folder} has no safetensors files; load the model and save it with save_pretrained")
        if dtype == "auto":
            dtype = config.dtype or self._open(next(iter(self.files))).dtype
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        model = without_weights(config, self.dtype)
        config.name_or_path = str(source)
        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        self.net = network(model)
        # Every parameter's name in the trained model, by the module that it belongs to: blocks will change the names.
        stored = stored_names(model, dict(model.named_parameters()))
        first = {parameter: stored[name] for name, parameter in model.named_parameters()}  # if tied, the embedding's
        self.names = {
            (module, name): self._stored(first[parameter])
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        kept = model.state_dict().keys()
        self.buffers = {name for name, _ in model.named_buffers() if name in kept}  # a few numbers, read at once
        for name in self.buffers & self.files.keys():
            model.get_buffer(name).copy_(self._open(name))
        self._check(model)

    def read(self, root: nn.Module, device: torch.device) -> None:
        """Bring the weights of a module and all inside it in."""
        for module in root.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                tensor = self._open(self.names[module, name]).to(device, self.dtype, copy=True)
                setattr(module, name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))

    def checksum(self) -> str:
        """Of everything that the sliced model depends on, by content."""
        digest = hashlib.sha256()
        for path in [self.folder / "config.json", *sorted(set(self.files.values()))]:
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def _open(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def _stored(self, name: str) -> str:
        """The name of a tensor in the files, where a base model's may lack the first word."""
        return name if name in self.files else name.removeprefix(f"{self.net.model.base_model_prefix}.")

    def _check(self, model: PreTrainedModel) -> None:
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        unexpected = sorted(
            name
            for name in self.files.keys() - set(self.names.values()) - self.buffers
            if not any(
                re.search(pattern, name) for pattern in (*ignored, r"inv_freq$", r"^(lm_head|embed_out)\.weight$")
            )
        )
        if unexpected:
            raise ValueError(
                f"{self.files[unexpected[0]]}: {len(unexpected)} tensors are unexpected, such as {unexpected[0]}"
            )
        for (module, name), stored in self.names.items():
            if stored not in self.files:
                raise ValueError(f"{self.folder}: no file has the tensor {stored}")
            with safe_open(self.files[stored], framework="pt") as tensors:
                found, expected = tensors.get_slice(stored).get_shape(), list(getattr(module, name).shape)
            if found != expected:
                raise ValueError(
                    f"{self.files[stored]}: {stored} is {found}, and the config asks for {expected}; weights and "
                    "config.json belong to different models"
                )
