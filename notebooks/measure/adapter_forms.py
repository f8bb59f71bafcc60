"""What each form of residual adapter costs and reaches, on every trained model at hand: the tables of the README.

    python notebooks/measure/adapter_forms.py

The three embedded models; with MINISLICE_TEST_ASSETS set, the four of its folder `models` too, on the token batches
that lie in its folder `oracle`. 64 x 256 calibration tokens, the models' own held-out text, float32.
"""

import argparse
import copy
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

import minislice
from minislice.architecture.network import network
from minislice.beyond.equal_size import ADAPTERS, TIED_ADAPTERS, equal_size, perplexity_at
from minislice.corpus.embedded import EMBEDDED
from minislice.corpus.text import load_text, sample, tokenize
from minislice.options import slice_width

SLICING = 0.25


def models_at_hand():
    """(name, model, calibration tokens, evaluation tokens) for each trained model."""
    for name in EMBEDDED:
        model, tokenizer = minislice.load(name, dtype=torch.float32)
        splits = [tokenize(load_text("embedded", split), tokenizer) for split in ("calibration", "test")]
        yield name, model, *(sample(stream, 64, 256) for stream in splits)
    assets = os.environ.get("MINISLICE_TEST_ASSETS")
    for folder in sorted(Path(assets, "oracle").iterdir()) if assets else []:
        if folder.is_dir():
            model, _ = minislice.load(Path(assets, "models", folder.name), dtype=torch.float32)
            batches = [torch.from_numpy(np.load(folder / f"{which}.npy")) for which in ("calibration", "evaluation")]
            yield folder.name, model, *batches


def bytes_on_disk(model) -> int:
    """Of the safetensors file that the model is saved as, in its dtype (float32)."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "model"))
        return sum(file.stat().st_size for file in Path(folder, "model").glob("*.safetensors"))


def measure(model, calibration, evaluation) -> dict:
    """Rows at 25% and, at the size that `full` has there, the perplexity that each form reaches."""
    dense = {
        "perplexity": minislice.perplexity(model, evaluation),
        "parameters": minislice.parameters(model),
        "bytes": bytes_on_disk(model),
    }
    result = {"at 25%": {"dense": dense}}
    variants = ADAPTERS | (TIED_ADAPTERS if network(model).head_was_tied else {})
    for variant, options in variants.items():
        sliced = minislice.slice_model(copy.deepcopy(model), calibration, slicing=SLICING, **options)
        result["at 25%"][variant] = {
            "perplexity": minislice.perplexity(sliced, evaluation),
            "parameters": minislice.parameters(sliced),
            "bytes": bytes_on_disk(sliced),
        }
    D = network(model).trained_width
    k = slice_width(D, SLICING)
    size = result["at 25%"]["full"]["parameters"]
    points = equal_size(model, calibration, evaluation, widths=sorted({k, *np.linspace(k, D, 5).astype(int).tolist()}))
    result["at the size of full"] = {variant: perplexity_at(points, variant, size) for variant in variants}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {name: measure(*rest) for name, *rest in models_at_hand()}
    if arguments.json:
        print(json.dumps(results))
        return
    columns = ["dense", *VARIANTS, *TIED_ADAPTERS]
    print("| model, 25% | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, result in results.items():
        cells = []
        for column in columns:
            row = result["at 25%"].get(column)
            cells.append(
                "-"
                if row is None
                else f"{row['perplexity']:.2f}, {row['parameters'] / 1e6:.2f}M, {row['bytes'] / 1e6:.1f} MB"
            )
        print(f"| {name} | " + " | ".join(cells) + " |")
    columns = columns[1:]
    print("\n| model, size of full at 25% | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, result in results.items():
        reached = [result["at the size of full"].get(column) for column in columns]
        print(f"| {name} | " + " | ".join("-" if value is None else f"{value:.2f}" for value in reached) + " |")


if __name__ == "__main__":
    main()
