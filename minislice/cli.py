"""The command `minislice`."""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import torch
import transformers
from tqdm.auto import tqdm

from . import processes
from .adapters import FORMS
from .arguments import parser_for
from .checkpoint import EMBEDDED, export, load, load_config, load_tokenizer
from .demo import HEADER, SEQLEN, SLICINGS, demo_rows, format_row
from .evaluation import parameters, perplexity
from .families import network
from .invariance import verify
from .options import SlicingOptions, SlicingReport
from .rotation import require_whole
from .saving import require_free
from .slicing import slice_model, widths_of
from .streaming import local_folder, slice_streamed, without_weights
from .text import SOURCES, load_text, sample, tokenize, windows
from .tokens import position_limit


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 where `verify` finds a failure, 2 for bad input."""
    arguments = parser_for(COMMANDS).parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    try:
        with processes.joined():
            arguments.device = _device(arguments.device)
            arguments.quiet |= processes.index() > 0
            return arguments.run(arguments)
    except processes.Lost as error:
        print(f"minislice: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        print("minislice:", " ".join(str(error).split()), file=sys.stderr)  # one line, however many it came in
        return 2
    except KeyboardInterrupt:
        print("minislice: interrupted", file=sys.stderr)
        return 130


def run_demo(arguments: argparse.Namespace) -> int:
    dtype = getattr(torch, arguments.dtype or "float32")
    rows = demo_rows(arguments.samples or 16, arguments.seed, arguments.device, dtype)
    count = len(EMBEDDED) * (4 + len(SLICINGS) * len(FORMS))
    rows = tqdm(rows, total=count, desc="demo", leave=False, disable=arguments.quiet)
    if arguments.json:
        print(json.dumps(_without_nan([dataclasses.asdict(row) for row in rows])))
        return 0
    model = None
    for row in rows:
        with tqdm.external_write_mode():
            if row.model != model:
                model = row.model
                print(f"\n{model}\n{HEADER}")
            print(format_row(row), flush=True)
    print("\nNothing changes until rows and columns are deleted. Perplexity: held-out text of the standard library.")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    model, tokenizer = _load(arguments)
    tokens = _calibration(arguments, arguments.calibration, model, tokenizer, default_samples=4)
    dtypes = arguments.dtypes.split(",")
    found = verify(model, tokens, dtypes=dtypes, seed=arguments.seed, progress=not arguments.quiet)
    _print(
        arguments,
        {
            "passed": found.passed,
            "reference_perplexity": found.reference_perplexity,
            "measurements": [dataclasses.asdict(m) | {"passed": m.passed} for m in found.measurements],
        },
        str(found),
    )
    return 0 if found.passed else 1


def run_slice(arguments: argparse.Namespace) -> int:
    names = [option.name for option in dataclasses.fields(SlicingOptions)]
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    checked = SlicingOptions(**options)  # a bad option is told before a large model is loaded
    if arguments.out:
        require_free(arguments.out, arguments.force)
    result = _slice_streamed(arguments, options) if arguments.stream else _slice_in_memory(arguments, checked, options)
    if processes.index() == 0:
        _print(arguments, result)
    return 0


def _slice_in_memory(arguments: argparse.Namespace, checked: SlicingOptions, options: dict) -> dict:
    model, tokenizer = _load(arguments)
    net = network(model)
    require_whole(net, "slice")
    widths_of(net, checked)  # a bad width, before the dense model is measured for long
    calibration = _calibration(arguments, arguments.calibration, model, tokenizer, default_samples=128)
    _require_rank(calibration, net.trained_width)
    evaluation = _evaluation(arguments, model, tokenizer)
    settings = {"batch_size": arguments.batch_size, "progress": not arguments.quiet}
    result = {
        "model": arguments.model,
        "dense perplexity": perplexity(model, evaluation, **settings),
        "dense parameters": parameters(model),
    }
    slice_model(model, calibration, **settings, **options)
    result |= {
        "sliced perplexity": perplexity(model, evaluation, **settings),
        "sliced parameters": parameters(model),
        **_describe_slicing(model.slicing),
        "calibration": _describe_text(arguments, "calibration", calibration),
        "evaluation": _describe_text(arguments, "test", evaluation),
    }
    if arguments.out and processes.index() == 0:
        notes = {
            "base_model": arguments.model,
            "calibration": result["calibration"],
            "perplexity": f"{result['sliced perplexity']:.4f} ({result['evaluation']}); "
            f"dense {result['dense perplexity']:.4f}",
        }
        model.save_pretrained(arguments.out, tokenizer=tokenizer, force=arguments.force, notes=notes)
        result["saved to"] = arguments.out
    processes.wait()
    return result


def _slice_streamed(arguments: argparse.Namespace, options: dict) -> dict:
    if not arguments.out:
        raise ValueError("--stream writes the sliced model as it goes: give it a folder with --out")
    folder = local_folder(arguments.model)
    model, tokenizer = without_weights(load_config(folder)), _tokenizer(arguments, load_tokenizer(folder))
    calibration = _calibration(arguments, arguments.calibration, model, tokenizer, default_samples=128)
    _require_rank(calibration, model.config.hidden_size)
    described = _describe_text(arguments, "calibration", calibration)
    report = slice_streamed(
        arguments.model,
        calibration,
        arguments.out,
        batch_size=arguments.batch_size,
        dtype=_dtype(arguments),
        device=arguments.device,
        tokenizer=tokenizer,
        notes={"base_model": arguments.model, "calibration": described},
        force=arguments.force,
        progress=not arguments.quiet,
        **options,
    )
    return {
        "model": arguments.model,
        "dense parameters": parameters(model),
        "sliced parameters": parameters(without_weights(load_config(Path(arguments.out)))),
        **_describe_slicing(report),
        "calibration": described,
        "saved to": arguments.out,
    }


def _describe_slicing(report: SlicingReport) -> dict:
    return {
        "widths": report.widths,
        "trained width": report.trained_width,
        "variance discarded": report.discarded,
        "adapter": report.options.adapter,
        "adapter ranks": report.ranks,
    }


def _require_rank(calibration: torch.Tensor, D: int) -> None:
    if calibration.numel() < D:
        raise ValueError(
            f"the covariance of {calibration.numel()} calibration tokens is singular in the {D} dimensions of this "
            f"model's signal; give at least {D} tokens, and better many times as many (--samples, --seqlen)"
        )


def run_eval(arguments: argparse.Namespace) -> int:
    model, tokenizer = _load(arguments)
    tokens = _evaluation(arguments, model, tokenizer)
    result = {
        "model": arguments.model,
        "perplexity": perplexity(model, tokens, progress=not arguments.quiet),
        "parameters": parameters(model),
        "evaluation": _describe_text(arguments, "test", tokens),
    }
    _print(arguments, result)
    return 0


def run_generate(arguments: argparse.Namespace) -> int:
    model, tokenizer = _load(arguments)
    inputs = tokenizer(arguments.prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("the prompt is empty: give at least one token to go on from")
    _require_known(inputs["input_ids"], model)
    length, limit = inputs["input_ids"].shape[1] + arguments.max_new_tokens - 1, position_limit(model)
    if limit is not None and length > limit:  # the last new token is not read again
        raise ValueError(
            f"the prompt and {arguments.max_new_tokens} new tokens take {length} positions, but the model has {limit}; "
            "ask for fewer, or shorten the prompt"
        )
    torch.manual_seed(arguments.seed)
    ids = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=arguments.do_sample)
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    _print(arguments, {"model": arguments.model, "text": text}, text)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    require_free(arguments.out, arguments.force)
    model, tokenizer = _load(arguments, default_dtype="auto")
    if not network(model).is_fused:
        raise ValueError(
            f"{arguments.model} isn't sliced, it has a stock architecture already; slice it with --adapter none "
            "--slice-head --out DIR, then export DIR"
        )
    export(model, arguments.out, tokenizer=tokenizer, force=arguments.force)
    _print(arguments, {"model": arguments.model, "saved to": arguments.out})
    return 0


def _device(name: str | None) -> str:
    """The device, which is there and can compute: told before anything is loaded."""
    if name is None:
        return f"cuda:{processes.local_index()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=None if name == "auto" else name).item()
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        raise ValueError(f"can't use the device {name!r}: {error}") from error
    return name


def _load(arguments: argparse.Namespace, default_dtype: str | None = None):
    """The model, float32 on a CPU and as it was saved on a GPU unless `--dtype` says otherwise, and its tokenizer."""
    model, tokenizer = load(arguments.model, dtype=_dtype(arguments, default_dtype), device=arguments.device)
    return model, _tokenizer(arguments, tokenizer)


def _dtype(arguments: argparse.Namespace, default: str | None = None) -> str:
    return arguments.dtype or default or ("float32" if arguments.device == "cpu" else "auto")


def _tokenizer(arguments: argparse.Namespace, tokenizer):
    if tokenizer is None:
        raise ValueError(f"{arguments.model} has no tokenizer beside it (tokenizer.json, tokenizer_config.json)")
    return tokenizer


def _stream(arguments, source: str | None, split: str, model, tokenizer) -> torch.Tensor:
    stream = tokenize(load_text(_source(arguments, source), split), tokenizer)
    _require_known(stream, model)
    if _one_file(arguments):  # it has no splits: what calibrates must not be measured on
        middle = len(stream) // 2
        return stream[:middle] if split == "calibration" else stream[middle:]
    return stream


def _require_known(ids: torch.Tensor, model) -> None:
    vocabulary = model.get_input_embeddings().num_embeddings
    if ids.numel() and ids.max() >= vocabulary:
        raise ValueError(
            f"the tokenizer makes ids up to {ids.max().item()}, but the model's vocabulary has {vocabulary} tokens; "
            "it belongs to another model"
        )


def _one_file(arguments: argparse.Namespace) -> bool:
    """Whether calibration and evaluation text are the same file."""
    names = (getattr(arguments, option, None) for option in ("calibration", "evaluation"))
    files = [Path(name) for name in names if name and name not in SOURCES]
    return len(files) == 2 and all(file.is_file() for file in files) and files[0].samefile(files[1])


def _source(arguments: argparse.Namespace, source: str | None) -> str:
    return source or ("embedded" if arguments.model in EMBEDDED else "wikitext2")


def _seqlen(arguments: argparse.Namespace, model) -> int:
    if arguments.seqlen:
        return arguments.seqlen
    return SEQLEN if arguments.model in EMBEDDED else min(2048, model.config.max_position_embeddings)


def _calibration(arguments, source: str | None, model, tokenizer, default_samples: int) -> torch.Tensor:
    stream = _stream(arguments, source, "calibration", model, tokenizer)
    return sample(stream, arguments.samples or default_samples, _seqlen(arguments, model), arguments.seed)


def _evaluation(arguments, model, tokenizer) -> torch.Tensor:
    stream = _stream(arguments, arguments.evaluation, "test", model, tokenizer)
    return windows(stream, _seqlen(arguments, model), arguments.eval_samples)


def _describe_text(arguments, split: str, tokens: torch.Tensor) -> str:
    source = _source(arguments, arguments.calibration if split == "calibration" else arguments.evaluation)
    name = source if source in SOURCES else Path(source).name
    half = {"calibration": ", first half", "test": ", second half"}[split] if _one_file(arguments) else ""
    return f"{name}{half}, {tokens.shape[0]} x {tokens.shape[1]} tokens"


def _print(arguments: argparse.Namespace, result: dict, text: str | None = None) -> None:
    if arguments.json:
        print(json.dumps(_without_nan(result)))
    elif text is not None:
        print(text)
    else:
        width = max(map(len, result))
        for key, value in result.items():
            if isinstance(value, list):
                value = " ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in value)
            elif isinstance(value, float):
                value = f"{value:.4f}"
            elif isinstance(value, int):
                value = f"{value:,}"
            print(f"{key:{width}s}  {value}")


def _without_nan(value):
    """JSON has no NaN: a perplexity or an error that isn't a number is null."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


COMMANDS = {
    "demo": run_demo,
    "verify": run_verify,
    "slice": run_slice,
    "eval": run_eval,
    "generate": run_generate,
    "export": run_export,
}

if __name__ == "__main__":
    sys.exit(main())
