"""What the scripts of this folder share: the trained models at hand, results files, and what is printed.

MINISLICE_TEST_ASSETS may name a folder with `models`, `text` (TinyStories, WikiText-2, Alpaca) and `oracle` (batches of
tokens); the three embedded models need none.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from transformers import PhiConfig

import minislice.slicing
from minislice.architecture.folder import whole_file
from minislice.calibration import Calibration
from minislice.corpus.embedded import EMBEDDED
from minislice.measuring import provenance, shapes

RESULTS = Path(__file__).parents[2] / "data" / "results"
ASSETS = os.environ.get("MINISLICE_TEST_ASSETS")
STORIES, WIKITEXT, ALPACA = "tinystories_1000.json", "wikitext2-test.raw", "alpaca-format.json"
MORE = {"stories260K": STORIES, "babyllama-tok361": STORIES, "opt-dev": WIKITEXT, "phi-dev": WIKITEXT}

TINY = PhiConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
SHAPES = {**shapes.SHAPES, "tiny": TINY}  # the paper's models, and one to try a script with
WORK = {  # by phase of slicing, where the pass looks its work up
    "forward": [(Calibration, "embed"), (Calibration, "forward")],
    "projection": [(Calibration, "project"), (Calibration, "add")],
    "weights": [(minislice.slicing, f"fold_{what}") for what in ("embedding", "reader", "writer")],
    "covariance": [(Calibration, "covariance")],
    "eigendecomposition": [(minislice.slicing, "principal_components")],
    "adapters": [(minislice.slicing, "make_adapter")],
}


def models() -> dict[str, tuple[str, str]]:
    """By name: what to load, and its text."""
    found = {name: (name, "embedded") for name in EMBEDDED}
    for name, text in MORE.items() if ASSETS else ():
        found[name] = str(Path(ASSETS, "models", name)), str(Path(ASSETS, "text", text))
    return found


def cost_parser(description: str) -> argparse.ArgumentParser:
    """The options of a script that measures costs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def read(results: Path) -> list[dict]:
    """The rows of a results file; none where there is no file."""
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.is_file() else []


def write(results: Path, rows: list[dict]) -> None:
    """Replace a results file."""
    with whole_file(results) as new:
        new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measured_by() -> dict[str, str]:
    """With what a row was measured."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {"versions": f"minislice {minislice.__version__}, {versions}", "commit": provenance.commit()}


@contextmanager
def timed() -> Iterator[Counter]:
    """The seconds of each phase of slicing inside the block: the functions that do it, with a clock around them."""
    seconds = Counter()

    def clocked(function, phase: str):
        def call(*args, **kwargs):
            began = time.perf_counter()
            result = function(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # its calls return before the work is done
            seconds[phase] += time.perf_counter() - began
            return result

        return call

    with ExitStack() as stack:
        for phase, places in WORK.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, clocked(getattr(owner, name), phase)))
        yield seconds
