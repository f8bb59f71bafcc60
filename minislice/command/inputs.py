"""What a command line's arguments name: the device, the model and its tokenizer, the tokens of a text."""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..architecture.configuration import SlicedConfig
from ..architecture.folder import require_free, whole_folder
from ..architecture.modeling import without_memory
from ..architecture.network import network
from ..beyond.self_calibration import own_text
from ..corpus.embedded import EMBEDDED, SEQLEN
from ..corpus.text import SOURCES, disjoint_streams, is_one_file, load_text, sample, windows
from ..large.source import TrainedWeights
from ..likelihood import perplexity
from ..measuring.cost import length_limit, parameters
from ..storage.checkpoint import load, load_config, load_tokenizer, locate
from ..storage.checks import usable_device
from .parser import OWN, SPREAD

SPLIT_OF = {"calibration": "calibration", "evaluation": "test"}  # of a text, by the option that names it


def device_of(arguments: argparse.Namespace) -> str:
    """The device to compute on; a ValueError where it isn't there, can't compute, or would be several."""
    name = arguments.device
    if name == "auto" and getattr(arguments, "command", "") not in SPREAD:
        raise ValueError(f"give one device, such as cpu or cuda:0; auto is for {', '.join(SPREAD)}")
    if not torch.cuda.is_available() and name in (None, "auto"):
        return "cpu"
    return f"cuda:{torch.distributed.get_node_local_rank(0)}" if name is None else usable_device(name)


def sliced_shapes(arguments: argparse.Namespace, how: str = "") -> PreTrainedModel:
    """The model without weights; a ValueError if it isn't sliced. `how` has options to slice with."""
    config = load_config(locate(arguments.model), arguments.trust_remote_code)
    if config.model_type != SlicedConfig.model_type:
        raise ValueError(f"{arguments.model} isn't sliced; give a folder that 'minislice slice{how} --out DIR' wrote")
    return without_memory(config)


def load_model(arguments: argparse.Namespace):
    """The model, and its tokenizer or None; with `--stream` its weights stay on the disk."""
    arguments.dtype = arguments.dtype or ("float32" if arguments.device == "cpu" else "auto")
    trusted = arguments.trust_remote_code
    if getattr(arguments, "stream", False):
        trained = TrainedWeights(arguments.model, arguments.dtype, trusted)
        return trained.net.model, load_tokenizer(trained.folder, trusted)
    return load(arguments.model, dtype=arguments.dtype, device=arguments.device, trust_remote_code=trusted)


def load_both(arguments: argparse.Namespace):
    """The model and its tokenizer; a ValueError if it has none."""
    model, tokenizer = load_model(arguments)
    if tokenizer is None:
        raise ValueError(f"{arguments.model} has no tokenizer beside it: it lacks tokenizer_config.json")
    return model, tokenizer


def given(arguments: argparse.Namespace, options: type) -> dict:
    """The fields of a dataclass of options that the command line gives."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def files_read(arguments: argparse.Namespace) -> list[Path]:
    """The files and folders that the command line names to be read: what the command writes must be apart."""
    options = ("calibration", "evaluation", "second_evaluation", "wikitext2", "alpaca")
    texts = [name for option in options if (name := getattr(arguments, option, None)) and name not in (*SOURCES, OWN)]
    model = locate(arguments.model) if arguments.model else None
    return [*map(Path, texts), *([model] if isinstance(model, Path) else [])]


def require_out(arguments: argparse.Namespace) -> Path | None:
    """The folder of --out, None without one; a ValueError, before the work, where the model can't be saved there."""
    if arguments.out:
        return require_free(arguments.out, arguments.force, files_read(arguments))
    if arguments.force:
        raise ValueError("--force replaces what is in the folder of --out: give --out too, or leave --force out")


class Prepared(NamedTuple):
    """A model, and the tokens of its texts, [sequences, tokens]; None for a text that the command doesn't need."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    calibration: torch.Tensor | None
    evaluation: torch.Tensor | None
    described: dict[str, str]  # the texts in words


def is_embedded(name: str, config: PreTrainedConfig) -> bool:
    """Whether a model is an embedded one, or was sliced from one."""
    return name in EMBEDDED or (getattr(config, "slicing", None) or {}).get("base_model") in EMBEDDED


def name_texts(arguments: argparse.Namespace) -> None:
    """Where the command line names no text, put in the embedded one for an embedded model, WikiText-2 for another.

    A source that is named for calibration alone is measured on as well: its test split, or the other half of a file.
    A ValueError, before a large model is loaded, where there is no such model or a text can't be read.
    """
    config = load_config(locate(arguments.model), arguments.trust_remote_code)
    default = "embedded" if is_embedded(arguments.model, config) else "wikitext2"
    calibration = getattr(arguments, "calibration", None)
    if "evaluation" in arguments:
        arguments.evaluation = arguments.evaluation or (default if calibration in (None, OWN) else calibration)
        if arguments.evaluation == OWN:
            raise ValueError(f"{OWN!r}, what the model writes itself, is to calibrate on; measure on another's text")
    if "calibration" in arguments:
        arguments.calibration = calibration or default
    for name, split in SPLIT_OF.items():
        if (source := getattr(arguments, name, None)) not in (OWN, None, "embedded"):
            load_text(source, split)


def seqlen_of(arguments: argparse.Namespace, model: PreTrainedModel, default: int = 2048) -> int:
    if arguments.seqlen:
        return arguments.seqlen
    return SEQLEN if is_embedded(arguments.model, model.config) else min(default, length_limit(model) or default)


def prepared(
    arguments: argparse.Namespace, look: Callable[[PreTrainedModel], None] = lambda model: None, seqlen: int = 2048
) -> Prepared:
    """Load the model, and cut the texts into tokens.

    Args:
        look: is called with the model before the texts are cut, and may refuse it.
        seqlen: the most tokens of a sequence, where the command line doesn't say.
    """
    name_texts(arguments)
    model, tokenizer = load_both(arguments)
    look(model)
    seqlen = seqlen_of(arguments, model, seqlen)
    sources = {name: getattr(arguments, name, None) for name in SPLIT_OF}
    calibration, evaluation = disjoint_streams(*(None if text == OWN else text for text in sources.values()), tokenizer)
    if sources["calibration"] == OWN:
        calibration = _own_text(arguments, seqlen, model, tokenizer)
    elif calibration is not None:
        calibration = sample(calibration, arguments.samples, seqlen, arguments.seed)
    if evaluation is not None:
        evaluation = windows(evaluation, seqlen, arguments.eval_samples)
    described = {}
    halves = (", first half", ", second half") if is_one_file(*sources.values()) else ("", "")
    for (name, source), tokens, half in zip(sources.items(), (calibration, evaluation), halves, strict=True):
        if tokens is not None:
            text = "the model's own" if source == OWN else Path(source).name
            described[name] = f"{text}{half}, {tokens.shape[0]} x {tokens.shape[1]} tokens"
    return Prepared(model, tokenizer, calibration, evaluation, described)


def _own_text(arguments: argparse.Namespace, seqlen: int, model: PreTrainedModel, tokenizer) -> torch.Tensor:
    """What the model writes; where several processes hold it, what it writes in the first."""
    ids = torch.empty(arguments.samples, seqlen, dtype=torch.int64)
    if arguments.processes.index == 0:
        settings = {"vocabulary": len(tokenizer), "seed": arguments.seed, "progress": not arguments.quiet}
        ids = own_text(model, *ids.shape, **settings)
    return arguments.processes.firsts([ids.to(model.device)])[0].cpu()


def before_and_after(arguments: argparse.Namespace, kind: str, act: Callable[[], object], ready: Prepared) -> dict:
    """Measure a dense model, let `act` make it "sliced" or "compressed", measure again, and save the model to --out.

    Returns what is printed.
    """
    settings = {"batch_size": arguments.batch_size, "progress": not arguments.quiet}
    model, size = ready.model, parameters(ready.model)
    before = measured(arguments.model, model, ready.evaluation, **settings)
    began = time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    after = measured(f"the {kind} model", model, ready.evaluation, **settings)
    if arguments.out and arguments.processes.is_first and network(model).is_fused:
        perplexities = f"{after:.4f} ({ready.described['evaluation']}); dense {before:.4f}"
        notes = {"calibration": ready.described["calibration"], "perplexity": perplexities}
        model.save_pretrained(arguments.out, tokenizer=ready.tokenizer, force=arguments.force, notes=notes)
    elif arguments.out and arguments.processes.is_first:  # only neurons were deleted: the class is transformers' own
        with whole_folder(arguments.out, arguments.force) as folder:
            model.save_pretrained(folder)
            ready.tokenizer.save_pretrained(folder)
    return {
        "model": arguments.model,
        "dense perplexity": before,
        f"{kind} perplexity": after,
        "dense parameters": size,
        f"{kind} parameters": parameters(model),
        **ready.described,
        "seconds": seconds,
    }


def measured(name: str, model: PreTrainedModel, tokens: torch.Tensor, **settings) -> float:
    """The perplexity; a ValueError where it isn't a number."""
    value = perplexity(model, tokens, **settings)
    if math.isnan(value):
        raise ValueError(f"the perplexity of {name} isn't a number; check the weights, or use a wider dtype (--dtype)")
    return value
