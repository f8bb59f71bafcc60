"""`minislice slice`: slice a model, in memory or from its files, and measure what it costs."""

import argparse
import ctypes
import sys
import time
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from ..architecture.folder import place_for, require_apart
from ..architecture.modeling import without_memory
from ..architecture.network import network
from ..beyond.slicing import slice_model
from ..large.shared import SharedCalibration
from ..large.streaming import slice_streamed
from ..measuring.cost import parameters, size_in_words
from ..measuring.shapes import sliced_config
from ..options import SlicingOptions
from ..report import SlicingReport
from ..rotation import require_whole
from ..storage.checkpoint import load_config
from ..storage.stock import stock_network
from .inputs import Prepared, before_and_after, files_read, given, prepared, require_out, seqlen_of
from .output import print_result
from .parser import OWN

M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def run(arguments: argparse.Namespace) -> None:
    options = given(arguments, SlicingOptions)
    checked = SlicingOptions(**options)  # a bad option is told before a large model is loaded
    if arguments.stream and not arguments.out:
        raise ValueError("--stream writes the sliced model as it goes: give it a folder with --out")
    if arguments.stream and arguments.calibration == OWN:
        raise ValueError("--stream has no whole model in memory that could write a text; calibrate on another's")
    first = arguments.processes.is_first
    if first and arguments.stream:  # which looks itself at what is there: an unfinished run may be
        place_for(require_apart(arguments.out, files_read(arguments)))
    elif first:
        require_out(arguments)
    if arguments.stream:
        return_freed_memory()
    ready = prepared(arguments, partial(_look_ahead, arguments, checked))
    arguments.batch_size = -(-arguments.batch_size // arguments.processes.count)  # of all processes -> of this one
    settings = {"batch_size": arguments.batch_size, "progress": not arguments.quiet, **options}
    result, sliced = (_slice_streamed if arguments.stream else _slice_in_memory)(arguments, ready, settings)
    if first:
        size = size_in_words(sliced, result["dense parameters"])
        print_result(arguments, result | ({"saved to": arguments.out} if arguments.out else {}), note=size)


def _slice_in_memory(arguments: argparse.Namespace, ready: Prepared, settings: dict) -> tuple[dict, PreTrainedModel]:
    """What to print, and the sliced model."""
    model, shared = ready.model, partial(SharedCalibration, processes=arguments.processes)
    act = partial(slice_model, model, ready.calibration, calibration=shared, **settings)
    result = before_and_after(arguments, "sliced", act, ready) | _describe_slicing(model.slicing)
    arguments.processes.wait()
    return result, model


def _slice_streamed(arguments: argparse.Namespace, ready: Prepared, settings: dict) -> tuple[dict, PreTrainedModel]:
    """As `_slice_in_memory`, but nothing is measured, and the model has no weights."""
    result, began = {"model": arguments.model, "dense parameters": parameters(ready.model)}, time.perf_counter()
    same = ("dtype", "device", "force", "trust_remote_code", "processes")
    settings |= {name: getattr(arguments, name) for name in same}
    notes = {"calibration": ready.described["calibration"]}
    settings |= {"tokenizer": ready.tokenizer, "notes": notes}
    report = slice_streamed(arguments.model, ready.calibration, arguments.out, **settings)
    sliced = without_memory(load_config(Path(arguments.out)))
    result |= {"sliced parameters": parameters(sliced), **_describe_slicing(report)}
    return result | notes | {"seconds": time.perf_counter() - began}, sliced


def _look_ahead(arguments: argparse.Namespace, options: SlicingOptions, model: PreTrainedModel) -> None:
    """Refuse, before long work, too few tokens and widths that don't fit; say if the result can be exported.

    That can only be where all widths are the same and there are no adapters; otherwise nothing is said.
    """
    net = network(model)
    require_whole(net, "slice")
    options = options.resolved(net)
    widths = options.fit(net)
    count = arguments.samples * seqlen_of(arguments, model)
    kept = max((k for k in widths if k not in (None, net.trained_width)), default=0)
    if count < kept and options.basis == "pca":
        shortage = f"{count} calibration tokens can't span the {kept} dimensions that are to be kept"
        raise ValueError(f"{shortage}; give many times as many with --samples and --seqlen")
    if None in widths or len(set(widths)) > 1:
        return
    sliced = network(without_memory(sliced_config(model.config, **vars(options))))
    if sliced.has_adapters:
        return
    try:
        stock = stock_network(sliced)
        answer = f"it can be one, {type(stock.model).__name__} with a hidden size of {stock.trained_width}"
    except ValueError as error:
        answer = " ".join(str(error).split())
    if arguments.processes.is_first and not arguments.json:
        print(f"Export to a stock architecture: {answer}", flush=True)


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


def return_freed_memory() -> None:
    """From here on glibc gives a freed tensor's memory back to the system if the tensor is larger than 1 MiB.

    Else it keeps blocks of up to 32 MiB, in holes that the next layer doesn't quite fit: memory grows with each layer.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
