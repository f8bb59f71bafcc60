"""A trained model that stays on the disk: its shapes in memory, its weights read module by module."""

import os
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from ..architecture.modeling import without_memory
from ..architecture.network import network
from ..checks import require_choice
from ..storage.checkpoint import load_config, locate
from ..storage.checks import FLOATS, generation_config, require_fit, surplus
from ..storage.files import stored_tensors
from ..storage.gguf import is_gguf, place_of
from ..storage.unfinished import state_of


def merged(model: PreTrainedModel, pieces: dict[str, Tensor]) -> Tensor:
    """A parameter of a model, from the tensors that its files have in its place, by their names there.

    transformers makes one parameter of the matrices of all experts; this is how. `revert_weight_conversion` is the
    inverse.
    """
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    for stored, tensor in pieces.items():
        name, pattern = rename_source_key(stored, renamings, converters)
        if pattern is None:
            return tensor
        converter = next(converter for converter in converters if pattern in converter.source_patterns)
        converter.add_tensor(name, stored, pattern, tensor)
    return converter.convert(name, model=model, config=model.config)[name]


def local_folder(place: Path | str, trust_remote_code: bool = False) -> Path:
    """The folder of a model that `locate` has found, fetched from the hub if need be."""
    if is_gguf(place):
        raise ValueError(f"{place} is one file, not to be read layer by layer: load it and save it as a folder")
    if isinstance(place, Path):
        return place
    try:
        patterns = ["*.safetensors", "*.json", "*.model", "*.txt", *(["*.py"] if trust_remote_code else [])]
        return Path(snapshot_download(place, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ValueError(f"{place!r} is no folder here, and can't be fetched from the hub: {error}") from error


class TrainedWeights:
    """The trained model on disk, and the same model without weights (on torch's meta device) to bring them into.

    `net` is this model as a network; `config` stays that of the trained model.

    Raises:
        ValueError: a file is missing, damaged, or contradicts the config.
    """

    def __init__(self, source: str | os.PathLike, dtype: torch.dtype | str, trust_remote_code: bool = False):
        if isinstance(dtype, str):
            require_choice("dtype", dtype, ("auto", *FLOATS))
        place = locate(source)
        self.folder, self.trust_remote_code = local_folder(place, trust_remote_code), trust_remote_code
        self.config = config = load_config(self.folder, trust_remote_code)
        tensors = self.tensors = stored_tensors(self.folder)
        files = {tensor.path for tensor in tensors.values()}
        if any(path.suffix == ".bin" for path in files):
            raise ValueError(f"{self.folder} has no safetensors files; load the model and save it with save_pretrained")
        self.states = {path: state_of(path) for path in sorted({*files, self.folder / "config.json"})}
        if dtype == "auto":
            dtype = config.dtype or next(iter(tensors.values())).dtype
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        model = self.empty_model()
        if self._head_is_its_own(model):
            config.tie_word_embeddings = False
            model = self.empty_model()
        config.name_or_path = str(place_of(place)[0])
        model.generation_config = generation_config(self.folder) or model.generation_config
        self.net = network(model)
        # By module and not by name: blocks will change the names. A tied matrix has the embedding's name in the files.
        pieces = {parameter: self._pieces(model, name) for name, parameter in model.named_parameters()}
        self.pieces = {
            (module, name): pieces[parameter]
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        buffers = tensors.keys() & model.state_dict() & {name for name, _ in model.named_buffers()}
        for name in buffers:  # a few numbers, read at once
            model.get_buffer(name).copy_(self._read(name))
        needed = {name for names in pieces.values() for name in names}
        tied = {name for target in model.all_tied_weights_keys for name in self._pieces(model, target)}
        if unexpected := surplus(model, tensors.keys() - needed - tied - buffers):
            path = tensors[unexpected[0]].path
            raise ValueError(f"{path}: {len(unexpected)} tensors are unexpected, such as {unexpected[0]}")
        if missing := sorted(needed - tensors.keys()):
            raise ValueError(f"{self.folder}: no file has the tensor {missing[0]}")
        require_fit(model, tensors)

    def empty_model(self) -> PreTrainedModel:
        """The trained model without weights. Its buffers are filled in: tables of positions, which no file holds."""
        model = without_memory(self.config, self.trust_remote_code, self.dtype).eval()
        for module in model.modules():
            if buffers := dict(module.named_buffers(recurse=False)):
                module._buffers.update({name: torch.empty_like(x, device="cpu") for name, x in buffers.items()})
                model._init_weights(module)  # as `from_pretrained` does
        return model

    def read(self, root: nn.Module, device: torch.device) -> None:
        """Bring in the weights of a module and of all modules inside it."""
        for module in root.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                tensor = merged(self.net.model, {piece: self._read(piece) for piece in self.pieces[module, name]})
                tensor = tensor.to(device, self.dtype)
                setattr(module, name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))

    def _read(self, name: str) -> Tensor:
        """A tensor of the files; a ValueError if its file has changed since this object was made."""
        path = self.tensors[name].path
        if state_of(path) != self.states[path]:
            raise ValueError(
                f"{path} has changed since the run began, and {name} in it may have; what is sliced so far belongs to "
                "the weights of before: put these back to go on, or save to another folder"
            )
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_tensor(name).clone()  # what is mapped from a file changes with it

    def _pieces(self, model: PreTrainedModel, name: str) -> list[str]:
        """The names of the tensors that the files have in place of a parameter.

        A base model's files may lack the first word of each name. A tied matrix may be there under its other name.
        """
        if name in self.tensors:
            return [name]
        pieces = [
            piece if piece in self.tensors else piece.removeprefix(f"{model.base_model_prefix}.")
            for piece in revert_weight_conversion(model, {name: model.get_parameter(name)})
        ]
        for target, source in model.all_tied_weights_keys.items():
            if name == source and pieces[0] not in self.tensors:
                return self._pieces(model, target)
        return pieces

    def _head_is_its_own(self, model: PreTrainedModel) -> bool:
        """Whether the files have another matrix for the head than for the embedding, although the config ties them.

        A fine-tune that trained its head leaves such files; transformers doesn't tie the two then.
        """
        for names in model.all_tied_weights_keys.items():
            head, embedding = (self._pieces(model, name)[0] for name in names)
            if {head, embedding} <= self.tensors.keys():
                return not torch.equal(self._read(head).to(self.dtype), self._read(embedding).to(self.dtype))
        return False
