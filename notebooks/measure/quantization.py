"""What a rotation does for rounding to a few bits, on SmolLM2: what notebook 10 shows.

    python notebooks/measure/quantization.py    # adds what data/results/smollm2-quantization.jsonl lacks

MINISLICE_TEST_ASSETS is a folder with `text`, where WikiText-2 lies. Three windows of 512 tokens, in float32 on a CPU.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from common import ASSETS, RESULTS, WIKITEXT, measured_by, read, write

import minislice
from minislice.architecture.network import network
from minislice.corpus.text import load_text, tokenize, windows
from minislice.measuring.paired import window_losses
from minislice.symmetries.anatomy import attentions
from minislice.symmetries.kinds import ValueOutput
from minislice.teaching.quantization import (
    NEURONS,
    WHERE,
    hadamard,
    inputs_become,
    linears_by_input,
    peak,
    round_weights,
    rounded,
)

OUT = RESULTS / "smollm2-quantization.jsonl"
BITS = (8, 6, 4)
PICTURE = 15  # the layer whose columns are drawn


def with_hadamard(model):
    """The model, its signal turned by a Hadamard matrix."""
    return minislice.rotate(model, hadamard(model.config.hidden_size, torch.Generator().manual_seed(0)))


@torch.no_grad()
def with_values(model):
    """The same, and the values of every head turned by a Hadamard matrix."""
    for attention in attentions(network(with_hadamard(model))):
        R = hadamard(attention.size, torch.Generator().manual_seed(1)).to(model.dtype)
        ValueOutput().act(attention, [R] * len(attention.groups))
    return model


VARIANTS = {
    "as trained": lambda model: model,
    "fused": minislice.fuse,
    "rotated": minislice.rotate,
    "Hadamard": with_hadamard,
    "values too": with_values,
}
LAST = [*VARIANTS][-1]


def losses_of(model, tokens: torch.Tensor) -> dict:
    """Perplexity, and the mean loss of each window."""
    losses = window_losses(model, tokens)
    return {"perplexity": losses.perplexity, "losses": (losses.nll / losses.tokens).tolist()}


def activations(model, tokens: torch.Tensor, name: str) -> Iterator[dict]:
    """Perplexity with the inputs of all linears rounded; last also with exact neurons, or with turned ones."""
    found, neurons = linears_by_input(network(model)), network(model).blocks[1].neurons
    H = hadamard(neurons, torch.Generator().manual_seed(2)).to(model.dtype)
    others = [linear for where in WHERE if where != NEURONS for linear in found[where]]
    for bits in BITS:
        cut = partial(rounded, bits=bits)
        ways = {"rounded": cut, "exact": lambda x: x, "turned": lambda x, cut=cut: cut(x @ H) @ H.T}
        for way, function in ways.items() if name == LAST else [("rounded", cut)]:
            with inputs_become(others, cut), inputs_become(found[NEURONS], function):
                yield {"what": "activations", "bits": bits, "neurons": way, **losses_of(model, tokens)}


def weights(model, tokens: torch.Tensor) -> Iterator[dict]:
    """Perplexity with all weights of the blocks rounded to 4 bits."""
    model = copy.deepcopy(model)
    round_weights(network(model), 4)
    yield {"what": "weights", "bits": 4, **losses_of(model, tokens)}


def inputs(model, tokens: torch.Tensor) -> Iterator[dict]:
    """What the linears read: the mean peak by place, and the largest entry of each column of one attention's input."""
    peaks, columns = {}, []

    def note(x: torch.Tensor, where: str) -> torch.Tensor:
        peaks.setdefault(where, []).append(peak(x).mean().item())
        return x

    def draw(x: torch.Tensor) -> torch.Tensor:
        columns.append(x.flatten(0, -2).abs().amax(0))
        return x

    with ExitStack() as stack:
        for where, linears in linears_by_input(network(model)).items():
            stack.enter_context(inputs_become(linears, partial(note, where=where)))
        stack.enter_context(inputs_become(network(model).blocks[2 * PICTURE].w_in[:1], draw))
        dense = losses_of(model, tokens)
    largest = torch.stack(columns).amax(0).tolist()
    means = {where: sum(values) / len(values) for where, values in peaks.items()}
    yield {"what": "inputs", "peaks": means, "columns": [round(value, 3) for value in largest], **dense}


def main() -> None:
    rows = read(OUT)
    done = {row["variant"] for row in rows}
    for name, variant in VARIANTS.items():
        if name not in done:
            model, tokenizer = minislice.load("smollm2", dtype="float32")
            text = load_text(str(Path(ASSETS, "text", WIKITEXT)))
            tokens = windows(tokenize(text, tokenizer), 512, 3)
            model = variant(model)
            for row in (*inputs(model, tokens), *activations(model, tokens, name), *weights(model, tokens)):
                rows.append({"variant": name, **row, **measured_by()})
                print(name, row["what"], row.get("bits"), row.get("neurons"), f"{row['perplexity']:.2f}", flush=True)
            write(OUT, rows)


if __name__ == "__main__":
    main()
