"""What each form of residual adapter costs and reaches, on every trained model at hand: two tables of data/results.

    python notebooks/measure/adapter_forms.py

The three embedded models; with MINISLICE_TEST_ASSETS set, the four of its folder `models` too, on the token batches
that lie in its folder `oracle`. 64 x 256 calibration tokens, the models' own held-out text, float32.
"""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import ASSETS, models

import minislice
from minislice.architecture.network import network
from minislice.corpus.embedded import EMBEDDED
from minislice.corpus.text import load_text, sample, tokenize
from minislice.measuring.tables import markdown
from minislice.options import slice_width

SLICING = 0.25
ADAPTERS = {  # options of `slice_model`, by the name that tables show
    "full": {"adapter": "full", "head": "own"},
    "low-rank": {"adapter": "low-rank", "head": "own"},
    "low-rank, 0.1": {"adapter": "low-rank", "tolerance": 0.1, "head": "own"},
    "none": {"adapter": "none", "head": "own"},
}
TIED_ADAPTERS = {  # besides, where the head was tied
    "none, fitted head": {"adapter": "none", "head": "fitted"},
    "low-rank, tied head": {"head": "tied"},
}


def models_at_hand():
    """Name, model, calibration and evaluation tokens of each trained model."""
    for name, (source, _) in models().items():
        model, tokenizer = minislice.load(source, dtype=torch.float32)
        if name in EMBEDDED:
            splits = [tokenize(load_text("embedded", split), tokenizer) for split in ("calibration", "test")]
            batches = [sample(stream, 64, 256) for stream in splits]
        else:
            files = [Path(ASSETS, "oracle", name, f"{which}.npy") for which in ("calibration", "evaluation")]
            batches = [torch.from_numpy(np.load(file)) for file in files]
        yield name, model, *batches


def bytes_on_disk(model) -> int:
    """Of the safetensors file that the model is saved as, in its dtype (float32)."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "model"))
        return sum(file.stat().st_size for file in Path(folder, "model").glob("*.safetensors"))


def measured(model, evaluation) -> dict:
    """Of a dense or a sliced model."""
    perplexity = minislice.perplexity(model, evaluation)
    return {"perplexity": perplexity, "parameters": minislice.parameters(model), "bytes": bytes_on_disk(model)}


def perplexity_at(size: int, points: list[tuple[int, float]]) -> float | None:
    """The perplexity at this number of parameters, log-linear between measured (parameters, perplexity); or None."""
    sizes, perplexities = zip(*sorted(points), strict=True)
    found = np.exp(np.interp(size, sizes, np.log(perplexities), left=np.nan, right=np.nan))
    return None if np.isnan(found) else float(found)


def measure(model, calibration, evaluation) -> dict:
    """Rows at 25% and, at the size that `full` has there, the perplexity that each form reaches."""
    rows = {"dense": measured(model, evaluation)}
    variants = ADAPTERS | (TIED_ADAPTERS if network(model).head_was_tied else {})
    for variant, options in variants.items():
        sliced = minislice.slice_model(copy.deepcopy(model), calibration, slicing=SLICING, **options)
        rows[variant] = measured(sliced, evaluation)
    D = network(model).trained_width
    widths = sorted({slice_width(D, SLICING), *np.linspace(slice_width(D, SLICING), D, 5).astype(int).tolist()})
    reached = {}
    for variant, options in variants.items():
        models = [minislice.slice_model(copy.deepcopy(model), calibration, width=k, **options) for k in widths]
        points = [(minislice.parameters(sliced), minislice.perplexity(sliced, evaluation)) for sliced in models]
        reached[variant] = perplexity_at(rows["full"]["parameters"], points)
    return {"at 25%": rows, "at the size of full": reached}


def main() -> None:
    results = {name: measure(*rest) for name, *rest in models_at_hand()}
    columns = ["dense", *ADAPTERS, *TIED_ADAPTERS]

    def shown(row: dict | None) -> str:
        size = "" if row is None else f"{row['parameters'] / 1e6:.2f}M, {row['bytes'] / 1e6:.1f} MB"
        return "-" if row is None else f"{row['perplexity']:.2f}, {size}"

    lines = [[name, *(shown(result["at 25%"].get(c)) for c in columns)] for name, result in results.items()]
    print(markdown(["model, 25%", *columns], lines))
    reached = {name: [result["at the size of full"].get(c) for c in columns[1:]] for name, result in results.items()}
    lines = [[name, *("-" if v is None else f"{v:.2f}" for v in values)] for name, values in reached.items()]
    print("\n" + markdown(["model, size of full at 25%", *columns[1:]], lines))


if __name__ == "__main__":
    main()
