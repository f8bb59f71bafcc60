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

from . import __version__
from .adapters import FORMS
from .checkpoint import EMBEDDED, export, load
from .demo import HEADER, SEQLEN, SLICINGS, demo_rows, format_row
from .evaluation import parameters, perplexity
from .families import network
from .heads import HEADS
from .invariance import TOLERANCES, verify
from .options import BASES, ORIENTATIONS, SlicingOptions
from .pca import SIGNALS
from .rotation import require_whole
from .saving import require_free
from .slicing import slice_model
from .text import SOURCES, load_text, sample, tokenize, windows
from .tokens import position_limit

MODEL_HELP = f"one of the embedded models ({', '.join(EMBEDDED)}), a model's folder, or a name on the hub"
TEXT_HELP = (
    f"{', '.join(SOURCES)}, or a text, json, jsonl or parquet file (default: embedded for the embedded models, "
    "wikitext2 for others)"
)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 where `verify` finds a failure, 2 for bad input."""
    arguments = _parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    try:
        arguments.device = _device(arguments.device)
        return arguments.run(arguments)
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
    model, tokenizer = _load(arguments)
    net = network(model)
    require_whole(net, "slice")
    checked.widths(net.trained_width, len(net.blocks) + 1)  # a bad width, before it is measured for long
    calibration = _calibration(arguments, arguments.calibration, model, tokenizer, default_samples=128)
    evaluation = _evaluation(arguments, model, tokenizer)
    progress = not arguments.quiet
    result = {
        "model": arguments.model,
        "dense perplexity": perplexity(model, evaluation, progress=progress),
        "dense parameters": parameters(model),
    }
    slice_model(model, calibration, progress=progress, **options)
    report = model.slicing
    result |= {
        "sliced perplexity": perplexity(model, evaluation, progress=progress),
        "sliced parameters": parameters(model),
        "widths": report.widths,
        "trained width": report.trained_width,
        "variance discarded": report.discarded,
        "adapter": report.options.adapter,
        "adapter ranks": report.ranks,
        "calibration": _describe_text(arguments, "calibration", calibration),
        "evaluation": _describe_text(arguments, "test", evaluation),
    }
    if arguments.out:
        notes = {
            "base_model": arguments.model,
            "calibration": result["calibration"],
            "perplexity": f"{result['sliced perplexity']:.4f} ({result['evaluation']}); "
            f"dense {result['dense perplexity']:.4f}",
        }
        model.save_pretrained(arguments.out, tokenizer=tokenizer, force=arguments.force, notes=notes)
        result["saved to"] = arguments.out
    _print(arguments, result)
    return 0


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
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=None if name == "auto" else name).item()
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        raise ValueError(f"can't use the device {name!r}: {error}") from error
    return name


def _load(arguments: argparse.Namespace, default_dtype: str | None = None):
    """The model, float32 on a CPU and as it was saved on a GPU unless `--dtype` says otherwise, and its tokenizer."""
    dtype = arguments.dtype or default_dtype or ("float32" if arguments.device == "cpu" else "auto")
    model, tokenizer = load(arguments.model, dtype=dtype, device=arguments.device)
    if tokenizer is None:
        raise ValueError(f"{arguments.model} has no tokenizer beside it (tokenizer.json, tokenizer_config.json)")
    return model, tokenizer


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minislice",
        description="SliceGPT: make a trained transformer smaller by deleting rows and columns of its weights.",
        epilog="Start with 'minislice demo'. 'minislice COMMAND --help' explains a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"minislice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run, help: str, *, model: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run)
        if model:
            sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
        sub.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
        sub.add_argument("--device", help="such as cpu, cuda, cuda:1 (default: cuda where there is one)")
        dtypes = ["float32", "bfloat16", "float16", "float64"]
        sub.add_argument("--dtype", choices=dtypes, help="of weights and signal (default: float32 on a CPU)")
        sub.add_argument("--json", action="store_true", help="print one JSON document instead of text")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
        return sub

    def calibration(sub: argparse.ArgumentParser, samples: int) -> None:
        sub.add_argument("--calibration", metavar="TEXT", help=f"calibration text: {TEXT_HELP}")
        sub.add_argument("--samples", type=_positive, help=f"calibration sequences (default: {samples})")

    def seqlen(sub: argparse.ArgumentParser) -> None:
        text = f"tokens a sequence (default: {SEQLEN} for the embedded models, else 2048, or the model's limit if less)"
        sub.add_argument("--seqlen", type=_positive, help=text)

    def evaluation(sub: argparse.ArgumentParser, note: str = "") -> None:
        sub.add_argument("--evaluation", metavar="TEXT", help=f"text to measure perplexity on: {TEXT_HELP}{note}")
        sub.add_argument("--eval-samples", type=_positive, help="measure on the first so many windows (default: all)")

    def out(sub: argparse.ArgumentParser, required: bool) -> None:
        sub.add_argument("--out", metavar="DIR", required=required, help="folder to save the model to")
        sub.add_argument("--force", action="store_true", help="replace DIR if it has files in it")

    sub = command(
        "demo", run_demo, "fuse, rotate and slice the three embedded models and show what changes", model=False
    )
    sub.add_argument("--samples", type=_positive, help="calibration and evaluation sequences (default: 16)")

    sub = command("verify", run_verify, "measure whether a model has the invariance; exit status 1 if it has not")
    calibration(sub, 4)
    seqlen(sub)
    sub.add_argument("--dtypes", default=",".join(TOLERANCES), help="comma-separated (default: %(default)s)")

    sub = command("slice", run_slice, "slice a model and measure what it costs; save it with --out")
    width = sub.add_mutually_exclusive_group()
    width.add_argument("--slicing", type=float, help="fraction of the width to delete (default: 0.25)")
    width.add_argument("--width", type=_positive, help="width to keep, taken as it is")
    width.add_argument("--discard", type=float, help="fraction of the variance to delete at each boundary")
    sub.add_argument("--multiple", type=_positive, help="round a fraction's width to a multiple of this (default: 8)")
    calibration(sub, 128)
    seqlen(sub)
    evaluation(sub, "; if it is the calibration file, its first half calibrates and its second is measured on")
    sub.add_argument("--signal", choices=SIGNALS, help="principal components of the norm's output or of its input")
    sub.add_argument("--slice-head", action="store_true", default=None, help="slice the last boundary too")
    sub.add_argument("--head", choices=HEADS, help="a tied head gets its own weights (default), or stays tied")
    sub.add_argument("--adapter", choices=FORMS, help="form of the residual adapters (default: low-rank)")
    sub.add_argument("--tolerance", type=float, help="low-rank: drop angles up to this cosine deficit (default: 0)")
    sub.add_argument("--basis", choices=BASES, help="what to keep; all but pca are baselines")
    sub.add_argument("--orientation", choices=ORIENTATIONS, help="of the basis inside the kept subspace")
    out(sub, required=False)

    sub = command("eval", run_eval, "measure a model's perplexity and count its parameters")
    seqlen(sub)
    evaluation(sub)

    sub = command("generate", run_generate, "continue a prompt")
    sub.add_argument("--prompt", required=True, help="text to continue")
    sub.add_argument("--max-new-tokens", type=_positive, default=64, help="(default: 64)")
    sub.add_argument("--do-sample", action="store_true", help="sample, instead of taking the likeliest token")

    sub = command("export", run_export, "write a sliced model as a stock architecture that needs no minislice")
    out(sub, required=True)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
