"""What lies beyond the paper, at equal sizes: the README's table of small models, and SmolLM2's.

    python tests/benchmarks/beyond.py            # the embedded models and, with MINISLICE_TEST_ASSETS, four more
    python tests/benchmarks/beyond.py --smollm2  # SmolLM2, calibrated on WikiText-2: about an hour of CPU time
    python tests/benchmarks/beyond.py --table

`minislice compare` measures; rows that are in data/results already are not measured again. MINISLICE_TEST_ASSETS is a
folder with `models` and `text`: TinyStories for stories260K and babyllama-tok361, WikiText-2 for opt-dev, phi-dev and
SmolLM2. The first half of a text calibrates, the second is measured on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minislice.corpus.embedded import EMBEDDED

RESULTS = Path(__file__).parents[2] / "data" / "results"
SMALL, SMOLLM2 = RESULTS / "small-models-beyond.jsonl", RESULTS / "smollm2-beyond.jsonl"
VARIANTS = ("slicegpt", "repaired", "neurons", "mixed", "depth")
STORIES, WIKITEXT = "tinystories_1000.json", "wikitext2-test.raw"
TEXTS = {
    "stories260K": (STORIES, 256),
    "babyllama-tok361": (STORIES, 256),
    "opt-dev": (WIKITEXT, 128),
    "phi-dev": (WIKITEXT, 128),
}


def small_models(assets: str | None) -> dict[str, list[str]]:
    """What `minislice compare` is told of each."""
    common = ["--samples", "64", "--eval-samples", "32"]
    found = {name: [name, *common] for name in EMBEDDED}
    for name, (text, seqlen) in TEXTS.items() if assets else ():
        file = str(Path(assets, "text", text))
        texts = ["--calibration", file, "--evaluation", file, "--seqlen", str(seqlen)]
        found[name] = [str(Path(assets, "models", name)), *texts, *common]
    return found


def smollm2(assets: str) -> list[str]:
    file = str(Path(assets, "text", WIKITEXT))
    texts = ["--calibration", file, "--evaluation", file, "--seqlen", "512"]
    return ["smollm2", *texts, "--samples", "48", "--eval-samples", "10"]


def measure(name: str, arguments: list[str], variants: tuple[str, ...], results: Path) -> None:
    """Have `minislice compare` add what is missing of a model's rows to the results."""
    rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder, "results.jsonl")
        known.write_text("".join(json.dumps(row) + "\n" for row in rows if row["model"] == name), encoding="utf-8")
        chosen = ["--variants", ",".join(variants), "--sizes", "0.8", "--out", folder]
        subprocess.run([sys.executable, "-m", "minislice", "compare", *arguments, *chosen], check=True)
        new = [{**json.loads(line), "model": name} for line in known.read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["model"] != name] + new
    whole = results.with_suffix(".new")
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.move(whole, results)


def table(rows: list[dict]) -> str:
    """For each model the dense perplexity, and what each variant multiplies it by, with the size that is left."""
    lines = [f"| model, at most 80% | dense | {' | '.join(VARIANTS)} |", "|---" * (len(VARIANTS) + 2) + "|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = {row["variant"]: row for row in rows if row["model"] == model and row["status"] == "done"}
        told = [
            f"{row['ratio']:.3f} ± {row['ratio_error']:.3f}, {row['parameters'] / row['dense_parameters']:.0%}"
            if (row := cells.get(variant))
            else "-"
            for variant in VARIANTS
        ]
        lines.append(f"| {model} | {cells['dense']['perplexity']:.2f} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is in the results")
    settings = parser.parse_args()
    assets = os.environ.get("MINISLICE_TEST_ASSETS")
    if settings.table:
        files = [path for path in (SMALL, SMOLLM2) if path.is_file()]
        print(table([json.loads(line) for path in files for line in path.read_text("utf-8").splitlines()]))
    elif settings.smollm2:
        if assets is None:
            parser.error("needs MINISLICE_TEST_ASSETS: the folder with `text`")
        measure("smollm2", smollm2(assets), ("slicegpt", "repaired", "neurons", "mixed"), SMOLLM2)
    else:
        for name, arguments in small_models(assets).items():
            measure(name, arguments, VARIANTS, SMALL)


if __name__ == "__main__":
    main()
