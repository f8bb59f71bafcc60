"""`minislice cost`: what inference costs by slicing level and form of adapter, dense beside sliced."""

import argparse
import dataclasses

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..measuring.shapes import SHAPES, random_model, sliced_config
from ..measuring.timing import Pair, compare, product_milliseconds
from ..storage.checkpoint import load_config, locate
from .output import print_result

PRODUCT_TOKENS = 2048  # table 12


def run(arguments: argparse.Namespace) -> int:
    if arguments.device == "auto":
        raise ValueError("cost measures one device: give cpu or cuda:0, not auto")
    dense_config, variants = _variants(arguments)
    limit = getattr(dense_config, "max_position_embeddings", None)
    if limit is not None and max(arguments.prompt, arguments.length) > limit:
        raise ValueError(f"this model has {limit} positions; give at most as many with --prompt and --length")
    dtype = _dtype(arguments, dense_config)
    machine = {"dtype": dtype, "device": arguments.device}
    dense = random_model(dense_config, **machine)
    rows = []
    for variant, config in tqdm(variants.items(), desc="cost", leave=False, disable=arguments.quiet):
        sliced = random_model(config, **machine)
        names = ("prompt", "length", "rounds", "batch_size")
        found = compare(dense, sliced, **{name: getattr(arguments, name) for name in names})
        if arguments.products:
            found |= _products(dense, sliced, arguments.products)
        rows.append({"variant": variant, **{name: dataclasses.asdict(pair) for name, pair in found.items()}})
        del sliced
    head = f"{arguments.model}, {str(dtype).removeprefix('torch.')}, {_device_name(arguments.device)}"
    print_result(arguments, {"model": arguments.model, "machine": head, "rows": rows}, _table(head, rows))
    return 0


def _variants(arguments: argparse.Namespace) -> tuple[PreTrainedConfig, dict[str, PreTrainedConfig]]:
    """The dense config, and the sliced ones that are measured beside it."""
    config = SHAPES.get(arguments.model.lower()) or load_config(locate(arguments.model), arguments.trust_remote_code)
    if config.model_type == "minislice":
        return config.base, {"as it is": config}
    return config, {
        f"{level:.0%}, {form}": sliced_config(
            config, slicing=level, adapter=form, slice_head=arguments.slice_head, head=arguments.head
        )
        for level in arguments.slicing
        for form in arguments.adapter
    }


def _dtype(arguments: argparse.Namespace, config: PreTrainedConfig) -> torch.dtype:
    if arguments.dtype:
        return getattr(torch, arguments.dtype)
    return torch.float32 if arguments.device == "cpu" else config.dtype or torch.float16


def _products(dense, sliced, repeats: int) -> dict[str, Pair]:
    both = product_milliseconds({"dense": dense, "sliced": sliced}, tokens=PRODUCT_TOKENS, repeats=repeats)
    found = {}
    for name in both["sliced"] | both["dense"]:
        a, b = both["dense"].get(name), both["sliced"].get(name)
        found[f"{name}, ms"] = Pair(a, b, b / a if a and b else None)
    return found


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def _table(head: str, rows: list[dict]) -> str:
    lines = [head]
    for row in rows:
        lines.append(f"\n{row['variant']:24s} {'dense':>16s} {'sliced':>16s} {'ratio':>7s}")
        for name, pair in row.items():
            if name != "variant":
                ratio = "-" if pair["ratio"] is None else f"{pair['ratio']:.2f}"
                lines.append(f"{name:24s} {_cell(pair['dense'])} {_cell(pair['sliced'])} {ratio:>7s}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return f"{'-':>16s}"
    return f"{value:16,d}" if isinstance(value, int) else f"{value:16,.3f}"
