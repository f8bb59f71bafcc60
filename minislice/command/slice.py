"""`minislice slice`: slice a model, in memory or from its files, and measure what it costs."""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path

import torch

from ..adapters import FORMS
from ..architecture.folder import place_for, require_apart, require_free
from ..architecture.network import Network, network
from ..beyond.slicing import slice_model
from ..heads import HEADS
from ..large.shared import SharedCalibration
from ..large.source import TrainedWeights, without_weights
from ..large.streaming import slice_streamed
from ..measuring.cost import parameters, size_in_words
from ..measuring.shapes import sliced_config
from ..options import BASES, ORIENTATIONS, SlicingOptions
from ..pca import SIGNALS
from ..report import SlicingReport
from ..rotation import require_whole
from ..storage.checkpoint import load_config, load_tokenizer
from ..storage.stock import stock_network
from .inputs import dtype_of, files_read, load_both, measured, require_tokenizer, texts_of, token_sets
from .memory import return_freed_memory
from .output import print_result, save_sliced
from .parser import HEAD_HELP, add_calibration, add_evaluation, add_machine, add_model, add_out, add_seqlen, positive

NEURONS_HELP = "fraction of every MLP's neurons to delete, or how many to keep, a number for each MLP"
HELP = "slice a model and measure what it costs; save it with --out"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    add_model(sub)
    width = sub.add_mutually_exclusive_group()
    width.add_argument("--slicing", type=float, help="fraction of the width to delete (default: 0.25)")
    text = "width to keep, taken as it is; or one for each boundary, comma-separated, the last for the head"
    width.add_argument("--width", type=widths, metavar="WIDTH[,WIDTH...]", help=text)
    width.add_argument("--discard", type=float, help="fraction of the variance to delete at each boundary")
    sub.add_argument("--multiple", type=positive, help="round a fraction's width to a multiple of this (default: 8)")
    add_calibration(sub, 128)
    add_seqlen(sub)
    note = "; where a file is named for calibration alone, or for both, its first half calibrates and its second is "
    add_evaluation(sub, note + "measured on")
    sub.add_argument("--signal", choices=SIGNALS, help="principal components of the norm's output or of its input")
    first, last = sub.add_mutually_exclusive_group(), sub.add_mutually_exclusive_group()
    off, on = {"action": "store_false", "default": None}, {"action": "store_true", "default": None}
    first.add_argument("--keep-embedding", dest="slice_embedding", **off, help="leave the first boundary whole")
    first.add_argument("--slice-embedding", **on, help="slice it (default, unless the head stays tied)")
    last.add_argument("--keep-head", dest="slice_head", **off, help="leave the last boundary whole (default)")
    last.add_argument("--slice-head", **on, help="slice it too")
    sub.add_argument("--head", choices=HEADS, help=HEAD_HELP)
    sub.add_argument("--adapter", choices=FORMS, help="form of the residual adapters (default: low-rank)")
    sub.add_argument("--tolerance", type=float, help="low-rank: drop angles up to this cosine deficit (default: 0)")
    sub.add_argument("--neurons", type=neurons, metavar="N[,N...]", help="beyond the paper: " + NEURONS_HELP)
    sub.add_argument("--drop", type=numbers, metavar="N[,N...]", help="beyond the paper: blocks to leave out whole")
    text = "beyond the paper: solve for each block's W_out again, to make up for what slicing loses"
    sub.add_argument("--repair", action="store_true", default=None, help=text)
    sub.add_argument("--basis", choices=BASES, help="what to keep; all but pca are baselines")
    sub.add_argument("--orientation", choices=ORIENTATIONS, help="of the basis inside the kept subspace")
    add_out(sub, required=False)
    sub.add_argument("--batch-size", type=positive, default=8, help="sequences computed together (default: 8)")
    text = (
        "bring one layer at a time into memory, from MODEL's safetensors files; needs --out. Called again after an "
        "interruption, it goes on from the last finished layer. Measure the result with 'minislice eval DIR'"
    )
    sub.add_argument("--stream", action="store_true", help=text)
    add_machine(sub)


def run(arguments: argparse.Namespace) -> int:
    names = [option.name for option in dataclasses.fields(SlicingOptions)]
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    checked = SlicingOptions(**options)  # a bad option is told before a large model is loaded
    if isinstance(checked.width, list) and {"slice_embedding", "slice_head"} & options.keys():
        raise ValueError("a width for each boundary says which are whole; leave --keep-... and --slice-... out")
    if arguments.out and arguments.processes.index == 0:
        if arguments.stream:  # which looks itself at what is there: an unfinished run may be
            place_for(require_apart(arguments.out, files_read(arguments)))
        else:
            require_free(arguments.out, arguments.force, files_read(arguments))
    if arguments.stream:
        result, note = _slice_streamed(arguments, checked, options)
    else:
        result, note = _slice_in_memory(arguments, checked, options)
    if arguments.processes.index == 0:
        print_result(arguments, result, notes=[note])
    return 0


def _slice_in_memory(arguments: argparse.Namespace, checked: SlicingOptions, options: dict) -> tuple[dict, str]:
    """What to print of it, and a sentence about the size."""
    texts = texts_of(arguments)
    model, tokenizer = load_both(arguments)
    net = network(model)
    require_whole(net, "slice")
    _look_ahead(arguments, net, checked)  # before the dense model is measured for long
    calibration, evaluation = token_sets(arguments, texts, model, tokenizer)
    _require_rank(calibration, net.trained_width)
    settings = {"batch_size": _batch_size(arguments), "progress": not arguments.quiet}
    dense, before = parameters(model), measured(arguments.model, model, evaluation, **settings)
    began = time.perf_counter()
    shared = partial(SharedCalibration, processes=arguments.processes)
    slice_model(model, calibration, calibration=shared, **settings, **options)
    seconds = time.perf_counter() - began
    result = {
        "model": arguments.model,
        "dense perplexity": before,
        "sliced perplexity": measured("the sliced model", model, evaluation, **settings),
        "dense parameters": dense,
        "sliced parameters": parameters(model),
        **_describe_slicing(model.slicing),
        "calibration": texts.describe("calibration", calibration),
        "evaluation": texts.describe("test", evaluation),
        "seconds": seconds,
    }
    if arguments.out and arguments.processes.index == 0:
        save_sliced(arguments, model, tokenizer, result, result["sliced perplexity"])
    arguments.processes.wait()
    return result, size_in_words(model, dense)


def _slice_streamed(arguments: argparse.Namespace, checked: SlicingOptions, options: dict) -> tuple[dict, str]:
    """As `_slice_in_memory`; nothing is measured, so that no text is needed for it."""
    if not arguments.out:
        raise ValueError("--stream writes the sliced model as it goes: give it a folder with --out")
    return_freed_memory()
    trust = arguments.trust_remote_code
    trained, texts = TrainedWeights(arguments.model, dtype_of(arguments), trust), texts_of(arguments)
    model, tokenizer = trained.net.model, require_tokenizer(arguments, load_tokenizer(trained.folder, trust))
    calibration, _ = token_sets(arguments, texts, model, tokenizer)
    _require_rank(calibration, model.config.hidden_size)
    _look_ahead(arguments, network(model), checked)
    described, dense, began = texts.describe("calibration", calibration), parameters(model), time.perf_counter()
    report = slice_streamed(
        arguments.model,
        calibration,
        arguments.out,
        batch_size=_batch_size(arguments),
        dtype=dtype_of(arguments),
        device=arguments.device,
        tokenizer=tokenizer,
        notes={"base_model": arguments.model, "calibration": described},
        force=arguments.force,
        trust_remote_code=trust,
        progress=not arguments.quiet,
        processes=arguments.processes,
        **options,
    )
    sliced = without_weights(load_config(Path(arguments.out)))
    result = {
        "model": arguments.model,
        "dense parameters": dense,
        "sliced parameters": parameters(sliced),
        **_describe_slicing(report),
        "calibration": described,
        "seconds": time.perf_counter() - began,
        "saved to": arguments.out,
    }
    return result, size_in_words(sliced, dense)


def _look_ahead(arguments: argparse.Namespace, net: Network, options: SlicingOptions) -> None:
    """Say whether what is to become of a model of one width, without adapters, can be exported.

    Raises:
        ValueError: widths that the model can't have.
    """
    options = options.resolved(net)
    widths = options.fit(net)
    if None in widths or len(set(widths)) > 1:
        return
    sliced = network(without_weights(sliced_config(net.model.config, **vars(options))))
    if sliced.has_adapters:
        return
    try:
        stock = stock_network(sliced)
        said = f"it can be one, {type(stock.model).__name__} with a hidden size of {stock.trained_width}"
    except ValueError as error:
        said = " ".join(str(error).split())
    if arguments.processes.index == 0 and not arguments.json:
        print(f"Export to a stock architecture: {said}", flush=True)


def widths(text: str) -> int | list[int]:
    """An argument's type: one width, or one for each boundary."""
    several = [positive(width) for width in text.split(",")]
    return several if len(several) > 1 else several[0]


def neurons(text: str) -> float | list[int]:
    """An argument's type: a fraction, or a number for each MLP."""
    return numbers(text) if "," in text else float(text)


def numbers(text: str) -> list[int]:
    """An argument's type."""
    return [int(number) for number in text.split(",")]


def _batch_size(arguments: argparse.Namespace) -> int:
    """Of one process: all of them together compute so many sequences at a time."""
    return -(-arguments.batch_size // arguments.processes.count)


def _describe_slicing(report: SlicingReport) -> dict:
    return {
        "widths": report.widths,
        "trained width": report.trained_width,
        "variance discarded": report.discarded,
        "adapter": report.options.adapter,
        "adapter ranks": report.ranks,
        "head": report.options.head,
        "neurons": report.neurons,
        "blocks left out": report.options.drop,
    }


def _require_rank(calibration: torch.Tensor, D: int) -> None:
    if calibration.numel() < D:
        raise ValueError(
            f"the covariance of {calibration.numel()} calibration tokens is singular in the {D} dimensions of this "
            f"model's signal; give at least {D} tokens, and better many times as many (--samples, --seqlen)"
        )
