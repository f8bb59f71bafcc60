"""Models on disk: `save` and `load` for dense and sliced ones, `export` to an architecture that needs no minislice.

`architecture.configuration` and `architecture.modeling` say what a sliced model's folder holds.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import has_file

from ..architecture.card import USAGE_STOCK, model_card
from ..architecture.configuration import SlicedConfig
from ..architecture.folder import whole_folder
from ..architecture.mixtures import able_to_compute
from ..architecture.modeling import SlicedForCausalLM, without_memory
from ..checks import require_package
from ..corpus.embedded import EMBEDDED, data_folder
from ..corpus.text import require_hub
from .checks import generation_config, require_buildable, require_fit, require_values, surplus, usable_device
from .files import require_fetched, stored_tensors
from .gguf import SMOLLM2, forget_quantization, is_gguf, place_of, require_all_used, smollm2
from .stock import stock_model


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
    notes: dict[str, Any] | None = None,
    max_shard_size: int | str = "50GB",
) -> None:
    """Write a sliced model's folder, whole or not at all; `load` and transformers read it.

    Args:
        force: replace a folder that has files in it.
        notes: further facts ("calibration", "perplexity" ...) in JSON's types, for the config and the model card.
        max_shard_size: of one safetensors file.

    Raises:
        ValueError: the model isn't fused or sliced; the folder has files in it, and no `force`.
    """
    settings = {"tokenizer": tokenizer, "force": force, "notes": notes, "max_shard_size": max_shard_size}
    SlicedForCausalLM.wrap(model).save_pretrained(folder, **settings)


def export(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
) -> None:
    """Write a sliced model as one of transformers' own class.

    It must have one width and no adapters: ``adapter="none"`` and ``slice_head=True``, or ``slicing=0``. All MLPs must
    have the same number of neurons, and every layer all of its blocks or none.

    Raises:
        ValueError: the model can't be one; the folder has files in it, and no `force`.
    """
    sliced = SlicedForCausalLM.wrap(model)
    stock = stock_model(sliced)
    sliced.describe()
    stock.generation_config = sliced.generation_config
    with whole_folder(folder, force) as new:
        stock.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        (new / "README.md").write_text(model_card(sliced, stock.num_parameters(), USAGE_STOCK), encoding="utf-8")


def load(
    name: str | os.PathLike,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A dense or a sliced model in eval mode, and its tokenizer if it comes with one.

    Args:
        name: a folder, a GGUF file, one of `embedded.EMBEDDED`, "smollm2" (see `gguf`), or a name on the hub.
        dtype: "auto" is the one that the weights were saved in.
        device: where to put it; "auto" spreads it over the devices there are (needs accelerate).
        trust_remote_code: run the Python files that come with a model of an architecture of its own.

    Raises:
        ValueError: there is no such model, or something is wrong with one of its files; it says which.
    """
    source, device = locate(name), usable_device(device)
    model = _load(source, dtype, "auto" if device == "auto" else None, trust_remote_code)
    if device not in (None, "auto"):
        model = model.to(device)
    return able_to_compute(model).eval(), load_tokenizer(source, trust_remote_code)


def _load(source: Path | str, dtype: torch.dtype | str, device_map: str | None, trusted: bool) -> PreTrainedModel:
    config = load_config(source, trusted)
    trusted = trusted and not isinstance(config, SlicedConfig)  # minislice has the code of its own models
    place, gguf_file = place_of(source)
    tensors = stored_tensors(source) if isinstance(source, Path) and not gguf_file else {}
    if gguf_file and dtype == "auto":
        dtype = torch.float32
    try:
        require_fit(without_memory(config, trusted), tensors)
        arguments = {"config": config, "trust_remote_code": trusted, "dtype": dtype, "device_map": device_map}
        arguments |= {"output_loading_info": True, **gguf_file}
        model, found = AutoModelForCausalLM.from_pretrained(place, **arguments)
    except Exception as error:  # transformers, and the libraries that it calls, have many kinds
        raise ValueError(f"can't load {source}: {error}") from error
    wrong = {"missing": sorted(found["missing_keys"]), "unexpected": surplus(model, found["unexpected_keys"])}
    for fault, keys in wrong.items():
        if keys:
            where = tensors[keys[0]].path if keys[0] in tensors else source
            raise ValueError(f"{where}: {len(keys)} tensors are {fault}, such as {keys[0]}")
    if gguf_file:
        require_all_used(source, model)
        forget_quantization(model)
        model.config.name_or_path = source.name
    return model


def locate(name: str | os.PathLike) -> Path | str:
    """A local folder or GGUF file as a Path, a name on the hub as a str; a ValueError if it can't be either."""
    if not isinstance(name, (str, os.PathLike)) or not str(name):
        raise ValueError(f"give a model's folder, or its name on the hub, got {name!r}")
    if name in (*EMBEDDED, SMOLLM2) and Path(name).is_dir():
        raise ValueError(f"{name} names a model of minislice and a folder: write ./{name} for the folder, or rename it")
    if name in EMBEDDED:
        return data_folder() / name
    name = smollm2() if name == SMOLLM2 else name
    folder = Path(name)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{folder} holds a PEFT adapter; merge it into its base model first (merge_and_unload), and save that"
            )
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder / 'config.json'} doesn't exist: {folder} is not a model's folder")
    elif folder.exists():
        if not is_gguf(folder):
            raise ValueError(f"{folder} is a file; give the folder of a model, or a GGUF file")
        require_package("gguf", f"reading {folder.name}", "gguf")
    elif isinstance(name, Path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"{folder}: no such folder")
    else:
        return name
    require_fetched(folder)
    return folder


def load_config(source: Path | str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config in a folder or on the hub; a ValueError if it can't be read or describes no model."""
    place, gguf_file = place_of(source)
    if not isinstance(source, Path):
        require_hub(repr(source), f"a model's folder, or one of {', '.join(EMBEDDED)}")
    try:
        fields = {} if gguf_file else PreTrainedConfig.get_config_dict(source)[0]
        require_values(fields)
        trusted = trust_remote_code and fields.get("model_type") != SlicedConfig.model_type
        config = AutoConfig.from_pretrained(place, trust_remote_code=trusted, **gguf_file)
        require_buildable(config, trusted)
        for part in (config, getattr(config, "base", config)):
            part.return_dict = True  # transformers' own classes need it inside
    except Exception as error:  # a config class may stumble over any value
        where = source / "config.json" if isinstance(source, Path) and not gguf_file else source
        if isinstance(error, OSError) and not isinstance(source, Path):
            models = ", ".join(EMBEDDED)
            where = f"{source!r} is no folder here, none of the embedded models ({models}), and no model on the hub"
        raise ValueError(f"{where}: {error}") from error
    if isinstance(source, Path):
        generation_config(source)  # which raises if it is damaged
    return config


def load_tokenizer(source: Path | str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder or on the hub, if there is one."""
    place, gguf_file = place_of(source)
    try:
        if not gguf_file and not has_file(source, "tokenizer_config.json"):
            return None
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **gguf_file)
    except Exception as error:  # the tokenizers library raises bare Exceptions, too, for what it can't read
        raise ValueError(f"can't load the tokenizer of {source}: {error}") from error
