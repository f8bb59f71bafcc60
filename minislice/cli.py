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
from .checkpoint import EMBEDDED, export, load_config, load_tokenizer
from .demo import HEADER, SLICINGS, demo_rows, format_row
from .evaluation import parameters, perplexity
from .families import network
from .inputs import (
    calibration_tokens,
    describe_text,
    device_of,
    dtype_of,
    evaluation_tokens,
    load_both,
    require_known,
    require_tokenizer,
)
from .invariance import verify
from .options import SlicingOptions, SlicingReport
from .rotation import require_whole
from .saving import require_free
from .slicing import slice_model, widths_of
from .streaming import slice_streamed
from .tokens import position_limit
from .trained import local_folder, without_weights


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 where `verify` finds a failure, 2 for bad input."""
    arguments = parser_for(COMMANDS).parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    try:
        with processes.joined():
            arguments.device = device_of(arguments.device)
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
    model, tokenizer = load_both(arguments)
    tokens = calibration_tokens(arguments, arguments.calibration, model, tokenizer, default_samples=4)
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
    model, tokenizer = load_both(arguments)
    net = network(model)
    require_whole(net, "slice")
    widths_of(net, checked)  # a bad width, before the dense model is measured for long
    calibration = calibration_tokens(arguments, arguments.calibration, model, tokenizer, default_samples=128)
    _require_rank(calibration, net.trained_width)
    evaluation = evaluation_tokens(arguments, model, tokenizer)
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
        "calibration": describe_text(arguments, "calibration", calibration),
        "evaluation": describe_text(arguments, "test", evaluation),
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
    model, tokenizer = without_weights(load_config(folder)), require_tokenizer(arguments, load_tokenizer(folder))
    calibration = calibration_tokens(arguments, arguments.calibration, model, tokenizer, default_samples=128)
    _require_rank(calibration, model.config.hidden_size)
    described = describe_text(arguments, "calibration", calibration)
    report = slice_streamed(
        arguments.model,
        calibration,
        arguments.out,
        batch_size=arguments.batch_size,
        dtype=dtype_of(arguments),
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
    model, tokenizer = load_both(arguments)
    tokens = evaluation_tokens(arguments, model, tokenizer)
    result = {
        "model": arguments.model,
        "perplexity": perplexity(model, tokens, progress=not arguments.quiet),
        "parameters": parameters(model),
        "evaluation": describe_text(arguments, "test", tokens),
    }
    _print(arguments, result)
    return 0


def run_generate(arguments: argparse.Namespace) -> int:
    model, tokenizer = load_both(arguments)
    inputs = tokenizer(arguments.prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("the prompt is empty: give at least one token to go on from")
    require_known(inputs["input_ids"], model)
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
    model, tokenizer = load_both(arguments, default_dtype="auto")
    if not network(model).is_fused:
        raise ValueError(
            f"{arguments.model} isn't sliced, it has a stock architecture already; slice it with --adapter none "
            "--slice-head --out DIR, then export DIR"
        )
    export(model, arguments.out, tokenizer=tokenizer, force=arguments.force)
    _print(arguments, {"model": arguments.model, "saved to": arguments.out})
    return 0


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
