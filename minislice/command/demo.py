"""`minislice demo`: the three embedded models, taken through every step of the paper, as one table each.

Nothing changes until rows and columns are deleted: the first rows show it, the rest what deleting costs. As in the
paper, OPT's head, which was tied to the embedding, gets weights of its own.
"""

import argparse
import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..adapters import FORMS
from ..architecture.network import network
from ..beyond.slicing import slice_model
from ..corpus.embedded import EMBEDDED, SEQLEN
from ..corpus.text import disjoint_streams, sample
from ..invariance import STEPS, logits_of, relative_error
from ..likelihood import perplexity
from ..measuring.cost import parameters
from ..options import SlicingOptions
from ..storage.checkpoint import load
from .output import without_nan
from .parser import add_machine, positive

SLICINGS = (0.1, 0.2, 0.25, 0.3)


@dataclass(frozen=True)
class Row:
    """One model after one step."""

    model: str
    step: str
    width: int
    error: float  # of the logits against the dense model's: max |difference| over max |logit|
    perplexity: float
    parameters: int


def demo_rows(
    samples: int = 16, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[Row]:
    """Load, fuse, rotate and slice the embedded models on `samples` sequences; measure on as many held-out ones."""
    tokens = None
    for name in EMBEDDED:
        model, tokenizer = load(name, dtype=dtype, device=device)
        if tokens is None:  # the three share one tokenizer
            streams = disjoint_streams("embedded", "embedded", tokenizer)
            tokens = [sample(stream, samples, SEQLEN, seed) for stream in streams]
        calibration, evaluation = tokens
        few = evaluation[:4]
        reference = logits_of(model, few)

        def measured(step: str, changed: PreTrainedModel) -> Row:
            return Row(
                model=name,  # noqa: B023 - called before the next name
                step=step,
                width=network(changed).widths[0],
                error=relative_error(logits_of(changed, few), reference),  # noqa: B023
                perplexity=perplexity(changed, evaluation),  # noqa: B023
                parameters=parameters(changed),
            )

        yield measured("dense", model)
        for step, change in STEPS.items():
            if step != "loaded":  # which is the dense model, in another dtype
                yield measured(step, change(copy.deepcopy(model), calibration, None, seed))
        for slicing in SLICINGS:
            for form in FORMS:
                options = SlicingOptions.paper(slicing=slicing, adapter=form, seed=seed)
                sliced = slice_model(copy.deepcopy(model), calibration, **vars(options))
                yield measured(f"sliced {slicing:.0%}, {form}", sliced)


HEADER = f"{'':24s} {'width':>6s} {'logits error':>13s} {'perplexity':>11s} {'parameters':>11s}"


def format_row(row: Row) -> str:
    return f"{row.step:24s} {row.width:6d} {row.error:13.1e} {row.perplexity:11.2f} {row.parameters:11,d}"


HELP = "fuse, rotate and slice the three embedded models and show what changes"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    sub.add_argument("--samples", type=positive, default=16, help="calibration and evaluation sequences (default: 16)")
    add_machine(sub)


def run(arguments: argparse.Namespace) -> int:
    dtype = getattr(torch, arguments.dtype or "float32")
    rows = demo_rows(arguments.samples, arguments.seed, arguments.device, dtype)
    count = len(EMBEDDED) * (len(STEPS) + len(SLICINGS) * len(FORMS))
    rows = tqdm(rows, total=count, desc="demo", leave=False, disable=arguments.quiet)
    if arguments.json:
        print(json.dumps(without_nan([dataclasses.asdict(row) for row in rows])))
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
