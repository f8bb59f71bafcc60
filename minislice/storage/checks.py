"""What is wrong with a model's folder, found before its weights are loaded; each fault is one ValueError.

transformers, given a bad config, raises any exception. It casts integers and float8 to the dtype that it is asked for,
as if they were weights.
"""

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ..architecture.modeling import without_memory
from ..checks import require
from .files import Stored

FLOATS = ("float64", "float32", "float16", "bfloat16")


def require_values(fields: dict[str, Any]) -> None:
    """Raise a ValueError for a config with a dtype outside `FLOATS`, or of quantized weights."""
    for name in ("dtype", "torch_dtype"):
        require(fields.get(name) in (None, *FLOATS), name, f"one of {', '.join(FLOATS)}", fields.get(name))
    if quantized := fields.get("quantization_config"):
        raise ValueError(
            f"the weights are quantized ({quantized!s:.80}); minislice needs them in floating point: take the model "
            "that was quantized"
        )


def require_buildable(config: PreTrainedConfig, trust_remote_code: bool = False) -> None:
    """Raise a ValueError unless one layer of the config's model can be made: its activation is known, its sizes fit."""
    config = copy.deepcopy(getattr(config, "base", config))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        raise ValueError(f"a {config.model_type!r} model isn't a decoder that continues a text, which minislice needs")
    config.num_hidden_layers = 1
    try:
        without_memory(config, trust_remote_code)
    except Exception as error:  # transformers' code may raise anything; a KeyError's text is the unknown name alone
        reason = f"transformers has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"no {config.model_type!r} model can be made of it: {reason}") from error


# Tensors that some release of transformers saved although they are computed, not trained: masks, tables of positions.
COMPUTED = re.compile(r"(masked_bias|causal_mask|inv_freq|(cos|sin)_cached|position_ids|decoder\.version)$")


def surplus(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """The names of tensors that are neither the model's nor computed, sorted; `names` are those that aren't its own."""
    own = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    return sorted(name for name in names if not any(pattern.search(name) for pattern in (COMPUTED, *own)))


def generation_config(folder: Path) -> GenerationConfig | None:
    """What is in generation_config.json, if that is there; a ValueError if transformers can't read it."""
    if not (path := folder / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # as in `require_buildable`
        raise ValueError(f"{path} can't be read: {error}") from error


def require_fit(model: PreTrainedModel, tensors: dict[str, Stored]) -> None:
    """Raise a ValueError for a stored tensor that has another shape than the model's, or isn't in floating point."""
    for name, parameter in revert_weight_conversion(model, dict(model.named_parameters())).items():
        stored = tensors.get(name) or tensors.get(name.removeprefix(f"{model.base_model_prefix}."))
        if stored is None:
            continue
        if stored.dtype not in FLOATS:
            raise ValueError(
                f"{stored.path}: {name} is {stored.dtype}, none of {', '.join(FLOATS)}, and config.json has no "
                "quantization_config; minislice needs weights in floating point"
            )
        if stored.shape != tuple(parameter.shape):
            raise ValueError(
                f"{stored.path}: {name} is {list(stored.shape)}, and the config asks for {list(parameter.shape)}; "
                "weights and config.json belong to different models"
            )


def usable_device(device: torch.device | str | None) -> torch.device | str | None:
    """The same device, or a ValueError if it can't compute; "auto" and None are no particular device."""
    if device in (None, "auto"):
        return device
    try:
        torch.ones(1, dtype=torch.float64, device=device).item()  # Apple's GPUs have no float64
    except Exception as error:  # torch raises another kind for each device that it wasn't built for
        reason = re.split(r"\.\s|\n", str(error))[0]  # pages may follow
        raise ValueError(f"can't use the device {str(device)!r}: {reason}") from error
    return device
