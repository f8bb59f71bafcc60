"""`minislice cost`: what inference costs by slicing level and form of adapter, dense beside sliced."""

import argparse
import copy

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..measuring.provenance import hardware
from ..measuring.shapes import SHAPES, random_model, sliced_config
from ..measuring.tables import table
from ..measuring.timing import inference_cost, pair_of, product_milliseconds
from ..storage.checkpoint import load_config, locate
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    dense_config, variants = _variants(arguments)
    default = torch.float32 if arguments.device == "cpu" else dense_config.dtype or torch.float16
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else default
    dense = random_model(dense_config, dtype=dtype, device=arguments.device)
    settings = {name: getattr(arguments, name) for name in ("prompt", "length", "rounds", "batch_size")}
    head = f"{arguments.model}, {str(dtype).removeprefix('torch.')}, {hardware(arguments.device)}"
    rows, tables = [], [head]
    for variant, config in tqdm(variants.items(), desc="cost", leave=False, disable=arguments.quiet):
        sliced = random_model(config, dtype=dtype, device=arguments.device)
        pairs = inference_cost(dense, sliced, **settings)
        if arguments.products:
            times = product_milliseconds({"dense": dense, "sliced": sliced}, repeats=arguments.products)
            for name in times["sliced"] | times["dense"]:
                pairs[f"{name}, ms"] = pair_of(times["dense"].get(name), times["sliced"].get(name))
        rows.append({"variant": variant, **{name: pair._asdict() for name, pair in pairs.items()}})
        cells = [[name, *map(_cell, pair)] for name, pair in pairs.items()]
        tables.append(table([[variant, "dense", "sliced", "ratio"], *cells]))
        del sliced
    print_result(arguments, {"model": arguments.model, "machine": head, "rows": rows}, "\n\n".join(tables))


def _variants(arguments: argparse.Namespace) -> tuple[PreTrainedConfig, dict[str, PreTrainedConfig]]:
    """The dense config, and the sliced ones that are measured beside it."""
    config = SHAPES.get(arguments.model.lower()) or load_config(locate(arguments.model), arguments.trust_remote_code)
    if config.model_type == "minislice":
        names = ("slicing", "adapter", "slice_head", "head")
        if asked := [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]:
            raise ValueError(f"{arguments.model} is sliced already and is timed as it is: leave {', '.join(asked)} out")
        dense = copy.deepcopy(config.base)
        dense.tie_word_embeddings = config.head_was_tied  # fusion has untied it
        return dense, {"as it is": config}
    ends = {"slice_head": arguments.slice_head, "head": arguments.head}
    return config, {
        f"{level:.0%}, {form}": sliced_config(config, slicing=level, adapter=form, **ends)
        for level in arguments.slicing or [0.25]
        for form in arguments.adapter or ["low-rank"]
    }


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,d}" if isinstance(value, int) else f"{value:,.3f}"
