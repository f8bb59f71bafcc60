"""The beginning and the end of every notebook, and a few functions that several notebooks need."""

import time
from dataclasses import dataclass, field

import torch
import transformers
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..corpus.text import disjoint_streams, sample
from ..measuring import provenance
from ..measuring.layers import signals as signals  # `lecture.signals`, of the notebooks
from ..measuring.tables import table
from . import plots


@dataclass(frozen=True)
class Lesson:
    """One run of a notebook: its seed, its device and its clock."""

    seed: int
    device: str
    began: float = field(default_factory=time.perf_counter)
    worked: float = field(default_factory=time.process_time)

    def end(self) -> None:
        """Print versions, seed, machine, the seconds that passed and the CPU seconds ("of work")."""
        seconds, worked = time.perf_counter() - self.began, time.process_time() - self.worked
        versions = provenance.versions()
        print(", ".join(f"{name} {versions[name]}" for name in ("minislice", "torch", "transformers", "python")))
        machine = provenance.hardware(self.device)
        print(f"seed {self.seed}, {machine}, {seconds:.0f} seconds, {worked:.0f} of work")


def begin(seed: int = 0) -> Lesson:
    """Start the clock, seed torch, choose the device, set the style of figures, and silence transformers."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    plots.use_style()
    torch.manual_seed(seed)
    return Lesson(seed, "cuda" if torch.cuda.is_available() else "cpu")


def token_sets(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int = 16,
    evaluation: int = 32,
    seqlen: int = 256,
    seed: int = 0,
) -> tuple[Int64[Tensor, "samples seqlen"], Int64[Tensor, "evaluation seqlen"]]:
    """A calibration and an evaluation set that share no token of the text.

    The same `evaluation`, `seqlen` and `seed` give the same evaluation set, so that notebooks can be compared.

    Args:
        text: a source of `corpus.text.load_text`; see `corpus.text.disjoint_streams`.
        samples: windows of the calibration set, as `evaluation` of the evaluation set.
    """
    streams, counts = disjoint_streams(text, text, tokenizer), (samples, evaluation)
    return tuple(sample(stream, count, seqlen, seed) for stream, count in zip(streams, counts, strict=True))


def show(rows: list[dict]) -> None:
    """Print a table with numbers on the right of their columns."""
    print(table([[*rows[0]], *([_cell(row[name]) for name in rows[0]] for row in rows)]))


def _cell(value) -> str:
    if type(value) is int:  # and not True
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
