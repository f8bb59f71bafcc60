"""`minislice demo`: three small trained models through every step of the paper, in half a minute."""

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..adapters import FORMS
from ..architecture.folder import require_file
from ..architecture.network import network
from ..corpus.embedded import EMBEDDED, SEQLEN
from ..corpus.text import SPLITS, load_text, sample, tokenize
from ..invariance import STEPS, logits_of, relative_error
from ..likelihood import perplexity
from ..measuring.cost import parameters
from ..measuring.tables import table
from ..options import SlicingOptions
from ..slicing import slice_model
from ..storage.checkpoint import load, load_tokenizer, locate
from ..teaching import plots
from .output import picture, print_result
from .parser import PICTURE

SLICING, PROMPT, NEW_TOKENS = 0.25, "The statement", 16


def sliced(model: PreTrainedModel, tokens: Tensor, seed: int, form: str) -> PreTrainedModel:
    """A step like those of `STEPS`."""
    return slice_model(model, tokens, **vars(SlicingOptions.paper(slicing=SLICING, adapter=form, seed=seed)))


CHANGES = {("dense" if name == "loaded" else name): change for name, change in STEPS.items()}
CHANGES |= {f"sliced {SLICING:.0%}, {form}": partial(sliced, form=form) for form in FORMS}
WRITERS = ("dense", f"sliced {SLICING:.0%}, low-rank")
COLUMNS = {"step": "", "width": "d", "error": ".1e", "perplexity": ".2f", "parameters": ","}
EXPLANATION = f"""
Fused and rotated models compute the same as the dense one (theorem 1): only deleting rows and columns costs something.
Adapters: 'full' is the paper's k x k matrix, 'low-rank' computes the same with fewer parameters, 'none' has no adapter.
A small model with a tied head can grow: the head gets a matrix of its own, as in the paper (--head tied avoids it).
Errors are of the logits. Perplexity is on held-out text of the standard library; each model goes on from {PROMPT!r}.
"""
DOORS = """
Where next?  Learn: notebooks/00_quickstart.ipynb.  Use: minislice slice mini-llama --slicing 0.25 --out sliced
Teach: notebooks/assignments/README.md"""


def run(arguments: argparse.Namespace) -> None:
    arguments.picture = arguments.picture or PICTURE
    if not arguments.json:  # the picture's usual name is the command's own: the next demo replaces it
        require_file(arguments.picture, force=True if arguments.picture == PICTURE else None)
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # for matrices this small two threads take ten times the CPU time of one
    tokenizer = load_tokenizer(locate("mini-llama"))  # all three have the same
    texts = [load_text("embedded", split)[::10] for split in SPLITS]  # a tenth of the documents, to be quick
    tokens = [sample(tokenize(text, tokenizer), arguments.samples, SEQLEN, arguments.seed) for text in texts]
    rows = []
    for name in sorted(EMBEDDED):  # the LLaMA first
        steps = measured_steps(name, *tokens, arguments)
        rows += steps
        if not arguments.json:
            cells = [[format(row[column], form) for column, form in COLUMNS.items()] for row in steps]
            texts = [f"{row['step']} writes: {row['text']}" for row in steps if row["text"]]
            print("", name, table([[*COLUMNS], *cells]), *texts, sep="\n", flush=True)
    if arguments.json:
        return print_result(arguments, rows)
    print(EXPLANATION)
    draw(Path(arguments.picture), tokens[0])
    print(f"Picture: {arguments.picture}, an embedding matrix before its least columns are cut off.{DOORS}")


def measured_steps(name: str, calibration: Tensor, evaluation: Tensor, arguments: argparse.Namespace) -> list[dict]:
    """Fuse, rotate and slice an embedded model, and measure what each step makes of it."""
    dtype = getattr(torch, arguments.dtype)
    model, tokenizer = load(name, dtype=dtype, device=arguments.device)
    dense_logits = logits_of(model, evaluation[:2])
    prompt, rows = tokenizer(PROMPT, return_tensors="pt")["input_ids"].to(model.device), []
    for step, change in tqdm(CHANGES.items(), desc=name, leave=False, disable=arguments.quiet):
        changed, text = change(copy.deepcopy(model), calibration, arguments.seed), ""
        if step in WRITERS:
            ids = changed.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
            text = " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())
        row = {"model": name, "step": step, "width": network(changed).widths[0]}
        row["error"] = relative_error(logits_of(changed, evaluation[:2]), dense_logits)
        row |= {"perplexity": perplexity(changed, evaluation), "parameters": parameters(changed), "text": text}
        rows.append(row)
    return rows


def draw(path: Path, calibration: Tensor) -> None:
    """A picture of the LLaMA's embedding, as trained and rotated onto its principal components, and where it is cut."""
    model, _ = load("mini-llama", dtype="float32", device="cpu")
    dense = model.get_input_embeddings().weight[:96].detach().clone()
    slice_model(model, calibration, **vars(SlicingOptions.paper(slicing=0)))
    rotated = model.get_input_embeddings().weight[:96]
    labels, largest = ("column", "token", "|value|"), 3 * dense.std().item()
    with picture(path):
        axes = plots.panels(2)
        plots.matrix(dense.abs(), *labels, title="as trained", largest=largest, ax=axes[0])
        title = f"on principal components: {SLICING:.0%} are cut"
        plots.matrix(rotated.abs(), *labels, title=title, largest=largest, ax=axes[1])
        axes[1].axvline((1 - SLICING) * dense.shape[1], color="tab:red")
