"""`minislice demo`: three small trained models through every step of the paper, in less than a minute."""

import argparse
import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..adapters import FORMS
from ..architecture.folder import whole_file
from ..architecture.network import network
from ..corpus.embedded import EMBEDDED, SEQLEN
from ..corpus.text import SPLITS, load_text, sample, tokenize
from ..invariance import STEPS, logits_of, relative_error
from ..likelihood import perplexity
from ..measuring.cost import parameters
from ..options import SlicingOptions
from ..slicing import slice_model
from ..storage.checkpoint import load, load_tokenizer, locate
from .output import without_nan

SLICING, PROMPT, NEW_TOKENS = 0.25, "The statement", 16
CHANGES = {name: change for name, change in STEPS.items() if name != "loaded"}  # which changes nothing but the dtype
WRITERS = {"dense": "dense writes: ", f"sliced {SLICING:.0%}, low-rank": "sliced writes:"}
ROWS = len(EMBEDDED) * (1 + len(CHANGES) + len(FORMS))
HEADER = f"{'':24s} {'width':>6s} {'logits error':>13s} {'perplexity':>11s} {'parameters':>11s}"
EXPLANATION = f"""
Fused and rotated models compute the same as the dense one (theorem 1): only deleting rows and columns costs something.
Adapters: 'full' is the paper's k x k matrix, 'low-rank' computes the same with fewer parameters, 'none' has no adapter.
A small model with a tied head can grow: the head gets a matrix of its own, as in the paper (--head tied avoids it).
Perplexity is on held-out text of the standard library; each model goes on from {PROMPT!r}.
"""
DOORS = """
Where next?  Learn: notebooks/00_quickstart.ipynb.  Use: minislice slice mini-llama --slicing 0.25 --out sliced
Teach: notebooks/assignments/README.md"""


@dataclass(frozen=True)
class Row:
    """One model after one step."""

    model: str
    step: str
    width: int
    error: float  # of the logits against the dense model's: max |difference| over max |logit|
    perplexity: float
    parameters: int
    text: str  # that the model writes; of `WRITERS` alone

    def __str__(self) -> str:
        return f"{self.step:24s} {self.width:6d} {self.error:13.1e} {self.perplexity:11.2f} {self.parameters:11,d}"


def demo_rows(calibration: Tensor, evaluation: Tensor, seed: int, device: str, dtype: torch.dtype) -> Iterator[Row]:
    """Fuse, rotate and slice each embedded model, the LLaMA first, and measure each step."""
    for name in sorted(EMBEDDED):
        model, tokenizer = load(name, dtype=dtype, device=device)
        reference = logits_of(model, evaluation[:2])
        prompt = tokenizer(PROMPT, return_tensors="pt")["input_ids"].to(model.device)

        def row(step: str, changed: PreTrainedModel) -> Row:
            text = ""
            if step in WRITERS:
                ids = changed.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)  # noqa: B023 - called at once
                text = " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())  # noqa: B023
            return Row(
                model=name,  # noqa: B023
                step=step,
                width=network(changed).widths[0],
                error=relative_error(logits_of(changed, evaluation[:2]), reference),  # noqa: B023
                perplexity=perplexity(changed, evaluation),
                parameters=parameters(changed),
                text=text,
            )

        yield row("dense", model)
        for step, change in CHANGES.items():
            yield row(step, change(copy.deepcopy(model), calibration, None, seed))
        for form in FORMS:
            options = SlicingOptions.paper(slicing=SLICING, adapter=form, seed=seed)
            sliced = slice_model(copy.deepcopy(model), calibration, **vars(options))
            yield row(f"sliced {SLICING:.0%}, {form}", sliced)


def draw(path: Path, calibration: Tensor) -> None:
    """A picture of the LLaMA's embedding, as trained and rotated onto its principal components, and where it is cut."""
    import matplotlib.pyplot as plt  # takes half a second

    from ..teaching import plots

    model, _ = load("mini-llama", dtype="float32", device="cpu")
    dense = model.get_input_embeddings().weight[:96].detach().clone()
    slice_model(model, calibration, **vars(SlicingOptions.paper(slicing=0)))
    rotated = model.get_input_embeddings().weight[:96]
    pictures = {"as trained": dense, f"on principal components: {SLICING:.0%} are cut": rotated}
    with plt.rc_context():
        plots.use_style()
        axes = plots.panels(len(pictures))
        largest = 3 * dense.std().item()
        for ax, (title, values) in zip(axes, pictures.items(), strict=True):
            plots.matrix(values.abs(), "column", "token", "|value|", title=title, largest=largest, ax=ax)
        axes[1].axvline((1 - SLICING) * dense.shape[1], color="tab:red")
        with whole_file(path) as new:
            axes[0].figure.savefig(new, format="png", dpi=150)
        plt.close(axes[0].figure)


def run(arguments: argparse.Namespace) -> int:
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # for matrices this small two threads take ten times the CPU time of one
    tokenizer = load_tokenizer(locate("mini-llama"))  # all three have the same
    texts = [load_text("embedded", split)[::10] for split in SPLITS]  # a tenth of the documents, to be quick
    tokens = [sample(tokenize(text, tokenizer), arguments.samples, SEQLEN, arguments.seed) for text in texts]
    dtype = getattr(torch, arguments.dtype or "float32")
    rows = demo_rows(*tokens, arguments.seed, arguments.device, dtype)
    rows = tqdm(rows, total=ROWS, desc="demo", leave=False, disable=arguments.quiet)
    if arguments.json:
        print(json.dumps(without_nan([dataclasses.asdict(row) for row in rows])))
        return 0
    for row in rows:
        with tqdm.external_write_mode():
            if row.step == "dense":
                print(f"\n{row.model}\n{HEADER}")
                texts = []
            print(row, flush=True)
            texts += [f"{WRITERS[row.step]} {row.text}"] if row.text else []
            if row.step.endswith(FORMS[-1]):
                print("\n".join(texts))
    print(EXPLANATION)
    draw(Path(arguments.picture), tokens[0])
    print(f"Picture: {arguments.picture}, an embedding matrix before its least columns are cut off.{DOORS}")
    return 0
