"""What a command line's arguments name: the device, the model and its tokenizer, the tokens of a text."""

import argparse
from pathlib import Path

import torch

from ..corpus.embedded import EMBEDDED, SEQLEN
from ..corpus.text import SOURCES, load_text, sample, tokenize, windows
from ..large import processes
from ..storage.checkpoint import load


def device_of(name: str | None) -> str:
    """The device, which is there and can compute: told before anything is loaded."""
    if name is None:
        return f"cuda:{processes.local_index()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=None if name == "auto" else name).item()
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        raise ValueError(f"can't use the device {name!r}: {error}") from error
    return name


def load_both(arguments: argparse.Namespace, default_dtype: str | None = None):
    """The model, float32 on a CPU and as it was saved on a GPU unless `--dtype` says otherwise, and its tokenizer."""
    model, tokenizer = load(arguments.model, dtype=dtype_of(arguments, default_dtype), device=arguments.device)
    return model, require_tokenizer(arguments, tokenizer)


def dtype_of(arguments: argparse.Namespace, default: str | None = None) -> str:
    return arguments.dtype or default or ("float32" if arguments.device == "cpu" else "auto")


def require_tokenizer(arguments: argparse.Namespace, tokenizer):
    if tokenizer is None:
        raise ValueError(f"{arguments.model} has no tokenizer beside it (tokenizer.json, tokenizer_config.json)")
    return tokenizer


def token_stream(arguments, source: str | None, split: str, model, tokenizer) -> torch.Tensor:
    stream = tokenize(load_text(text_source(arguments, source), split), tokenizer)
    require_known(stream, model)
    if one_file(arguments):  # it has no splits: what calibrates must not be measured on
        middle = len(stream) // 2
        return stream[:middle] if split == "calibration" else stream[middle:]
    return stream


def require_known(ids: torch.Tensor, model) -> None:
    vocabulary = model.get_input_embeddings().num_embeddings
    if ids.numel() and ids.max() >= vocabulary:
        raise ValueError(
            f"the tokenizer makes ids up to {ids.max().item()}, but the model's vocabulary has {vocabulary} tokens; "
            "it belongs to another model"
        )


def one_file(arguments: argparse.Namespace) -> bool:
    """Whether calibration and evaluation text are the same file."""
    names = (getattr(arguments, option, None) for option in ("calibration", "evaluation"))
    files = [Path(name) for name in names if name and name not in SOURCES]
    return len(files) == 2 and all(file.is_file() for file in files) and files[0].samefile(files[1])


def text_source(arguments: argparse.Namespace, source: str | None) -> str:
    return source or ("embedded" if arguments.model in EMBEDDED else "wikitext2")


def seqlen_of(arguments: argparse.Namespace, model) -> int:
    if arguments.seqlen:
        return arguments.seqlen
    return SEQLEN if arguments.model in EMBEDDED else min(2048, model.config.max_position_embeddings)


def calibration_tokens(arguments, source: str | None, model, tokenizer, default_samples: int) -> torch.Tensor:
    stream = token_stream(arguments, source, "calibration", model, tokenizer)
    return sample(stream, arguments.samples or default_samples, seqlen_of(arguments, model), arguments.seed)


def evaluation_tokens(arguments, model, tokenizer) -> torch.Tensor:
    stream = token_stream(arguments, arguments.evaluation, "test", model, tokenizer)
    return windows(stream, seqlen_of(arguments, model), arguments.eval_samples)


def describe_text(arguments, split: str, tokens: torch.Tensor) -> str:
    source = text_source(arguments, arguments.calibration if split == "calibration" else arguments.evaluation)
    name = source if source in SOURCES else Path(source).name
    half = {"calibration": ", first half", "test": ", second half"}[split] if one_file(arguments) else ""
    return f"{name}{half}, {tokens.shape[0]} x {tokens.shape[1]} tokens"
