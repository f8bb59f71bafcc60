"""What a command line's arguments name: the device, the model and its tokenizer, the tokens of a text."""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..architecture.configuration import SlicedConfig
from ..architecture.modeling import without_memory
from ..beyond.self_calibration import own_text
from ..corpus.embedded import EMBEDDED, SEQLEN
from ..corpus.text import SOURCES, SPLITS, disjoint_streams, is_one_file, load_text, sample, windows
from ..large import processes
from ..likelihood import perplexity
from ..measuring.cost import length_limit, parameters
from ..storage.checkpoint import load, load_config, locate
from ..storage.checks import usable_device
from .parser import OWN


def device_of(name: str | None) -> str:
    """The device to compute on; a ValueError where it isn't there or can't compute."""
    if not torch.cuda.is_available() and name in (None, "auto"):
        return "cpu"
    return f"cuda:{processes.local_index()}" if name is None else usable_device(name)


def load_both(arguments: argparse.Namespace):
    """The model and its tokenizer."""
    model, tokenizer = load_model(arguments)
    return model, require_tokenizer(arguments, tokenizer)


def sliced_shapes(arguments: argparse.Namespace, how: str = "") -> PreTrainedModel:
    """The model without weights; a ValueError if it isn't sliced. `how` has options to slice with."""
    config = load_config(locate(arguments.model), arguments.trust_remote_code)
    if config.model_type != SlicedConfig.model_type:
        raise ValueError(f"{arguments.model} isn't sliced; give a folder that 'minislice slice{how} --out DIR' wrote")
    return without_memory(config)


def load_model(arguments: argparse.Namespace):
    """As `load_both`, with None for a tokenizer that isn't there."""
    machine = {"dtype": dtype_of(arguments), "device": arguments.device}
    return load(arguments.model, **machine, trust_remote_code=arguments.trust_remote_code)


def given(arguments: argparse.Namespace, options: type) -> dict:
    """The fields of a dataclass of options that the command line gives."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def dtype_of(arguments: argparse.Namespace) -> str:
    """What `--dtype` says; else float32 on a CPU, and as the model was saved on a GPU."""
    return arguments.dtype or ("float32" if arguments.device == "cpu" else "auto")


def require_tokenizer(arguments: argparse.Namespace, tokenizer):
    if tokenizer is None:
        raise ValueError(f"{arguments.model} has no tokenizer beside it: it lacks tokenizer_config.json")
    return tokenizer


def files_read(arguments: argparse.Namespace) -> list[Path]:
    """The files and folders that the command line names to be read: what the command writes must be apart."""
    options = ("calibration", "evaluation", "second_evaluation", "wikitext2", "alpaca")
    texts = [name for option in options if (name := getattr(arguments, option, None)) and name not in (*SOURCES, OWN)]
    model = locate(arguments.model) if arguments.model else None
    return [*map(Path, texts), *([model] if isinstance(model, Path) else [])]


class Texts(NamedTuple):
    """The sources of a command's texts; None for one that it doesn't need."""

    calibration: str | None
    evaluation: str | None


class TokenSets(NamedTuple):
    """The tokens of `Texts`, [sequences, tokens], and what to call them."""

    calibration: torch.Tensor | None
    evaluation: torch.Tensor | None
    described: dict[str, str]


def texts_of(arguments: argparse.Namespace) -> Texts:
    """What is named; else the embedded text for an embedded model, WikiText-2 for another.

    A source that is named for calibration alone is measured on as well: its test split, or the other half of a file.
    A ValueError, before a large model is loaded, where there is no such model or a text can't be read.
    """
    load_config(locate(arguments.model), arguments.trust_remote_code)
    default = "embedded" if arguments.model in EMBEDDED else "wikitext2"
    calibration, evaluation = (getattr(arguments, option, None) for option in Texts._fields)
    if evaluation is None:
        evaluation = default if calibration in (None, OWN) else calibration
    if "evaluation" not in arguments:
        evaluation = None
    if evaluation == OWN:
        raise ValueError(f"{OWN!r}, what the model writes itself, is to calibrate on; measure on another's text")
    texts = Texts(calibration or default if "calibration" in arguments else None, evaluation)
    for source, split in zip(texts, SPLITS, strict=True):
        if source not in (OWN, None, "embedded"):
            load_text(source, split)
    return texts


def seqlen_of(arguments: argparse.Namespace, model: PreTrainedModel, default: int = 2048) -> int:
    if arguments.seqlen:
        return arguments.seqlen
    return SEQLEN if arguments.model in EMBEDDED else min(default, length_limit(model) or default)


def token_sets(arguments: argparse.Namespace, texts: Texts, model: PreTrainedModel, tokenizer) -> TokenSets:
    seqlen = seqlen_of(arguments, model)
    read = texts._replace(calibration=None) if texts.calibration == OWN else texts
    calibration, evaluation = disjoint_streams(*read, tokenizer)
    if texts.calibration == OWN:
        calibration = _own_text(arguments, seqlen, model, tokenizer)
    elif calibration is not None:
        calibration = sample(calibration, arguments.samples, seqlen, arguments.seed)
    if evaluation is not None:
        evaluation = windows(evaluation, seqlen, arguments.eval_samples)
    described = {}
    halves = (", first half", ", second half") if is_one_file(*texts) else ("", "")
    for name, source, tokens, half in zip(Texts._fields, texts, (calibration, evaluation), halves, strict=True):
        if tokens is not None:
            text = "the model's own" if source == OWN else source if source in SOURCES else Path(source).name
            described[name] = f"{text}{half}, {tokens.shape[0]} x {tokens.shape[1]} tokens"
    return TokenSets(calibration, evaluation, described)


def _own_text(arguments: argparse.Namespace, seqlen: int, model: PreTrainedModel, tokenizer) -> torch.Tensor:
    """What the model writes; where several processes hold it, what it writes in the first."""
    ids = torch.empty(arguments.samples, seqlen, dtype=torch.int64)
    if arguments.processes.index == 0:
        settings = {"vocabulary": len(tokenizer), "seed": arguments.seed, "progress": not arguments.quiet}
        ids = own_text(model, *ids.shape, **settings)
    return arguments.processes.firsts([ids.to(model.device)])[0].cpu()


def before_and_after(
    arguments: argparse.Namespace, kind: str, act: Callable[[], object], model: PreTrainedModel, tokens: TokenSets
) -> dict:
    """Measure a dense model, let `act` make it "sliced" or "compressed", measure again. Returns what is printed."""
    settings = {"batch_size": arguments.batch_size, "progress": not arguments.quiet}
    size, before = parameters(model), measured(arguments.model, model, tokens.evaluation, **settings)
    began = time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    return {
        "model": arguments.model,
        "dense perplexity": before,
        f"{kind} perplexity": measured(f"the {kind} model", model, tokens.evaluation, **settings),
        "dense parameters": size,
        f"{kind} parameters": parameters(model),
        **tokens.described,
        "seconds": seconds,
    }


def measured(name: str, model: PreTrainedModel, tokens: torch.Tensor, **settings) -> float:
    """The perplexity; a ValueError where it isn't a number."""
    value = perplexity(model, tokens, **settings)
    if math.isnan(value):
        raise ValueError(f"the perplexity of {name} isn't a number; check the weights, or use a wider dtype (--dtype)")
    return value
