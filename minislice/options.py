"""What to keep of a model and how, and the report of what was done."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral, Real

from torch import Tensor

from .adapters import FORMS
from .heads import HEADS
from .pca import SIGNALS

BASES = ("pca", "random", "column-norm")
ORIENTATIONS = ("pca", "random")
PCA_DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class SlicingOptions:
    """What to keep and how. The width of each boundary comes from one of `slicing`, `width` and `discard`.

    Raises:
        ValueError: an option outside its range, by its name.
    """

    # The fraction of D to delete at every boundary; the width is rounded down to a multiple of `multiple`. The default
    # where neither `width` nor `discard` is given is 0.25.
    slicing: float | None = None
    # The width to keep, taken as it is; or one for each boundary, blocks + 1 in all, the last of them for the head.
    width: int | Sequence[int] | None = None
    # The fraction of the variance to delete at every boundary (appendix A.4); widths then vary, and are rounded up to
    # a multiple of `multiple`.
    discard: float | None = None
    multiple: int = 8
    # What the principal components are of: the norm's output, "normalized" (eq. 8), or its input, "raw".
    signal: str = "normalized"
    # Slice the boundary between the last block and the head too; the paper leaves it whole.
    slice_head: bool = False
    # The form of the residual adapters: "full" (the paper's), "low-rank" or "none"; see `adapters`.
    adapter: str = "low-rank"
    # For "low-rank": drop the directions whose cosine deficit is at most this; 0 computes exactly what "full" does.
    tolerance: float = 0.0
    # The head of a model whose head was tied to the embedding: weights of its "own", or still "tied"; see `heads`.
    head: str = "own"
    # What to keep: "pca", the principal components; "random", a random subspace; "column-norm", the columns of the
    # signal with the largest norms, unrotated. The last two are baselines.
    basis: str = "pca"
    # The orientation of the basis within the subspace that it keeps: "pca", or a "random" rotation of it.
    orientation: str = "pca"
    # The precision of the eigendecomposition; "float32" repeats the ablation of appendix A.2.
    pca_dtype: str = "float64"
    # For "random" basis and orientation.
    seed: int = 0

    def __post_init__(self):
        choices = {
            "signal": SIGNALS,
            "adapter": FORMS,
            "head": HEADS,
            "basis": BASES,
            "orientation": ORIENTATIONS,
            "pca_dtype": PCA_DTYPES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        widths = self.width if isinstance(self.width, Sequence) and not isinstance(self.width, str) else [self.width]
        if not all(_is_int(k) for k in widths if self.width is not None):
            raise ValueError(f"width must be a whole number, or one for each boundary, got {self.width!r}")
        if self.width is not None:  # NumPy's numbers would not go into a config.json
            widths = [int(k) for k in widths]
            object.__setattr__(self, "width", widths if isinstance(self.width, Sequence) else widths[0])
        if not isinstance(self.slice_head, bool):
            raise ValueError(f"slice_head must be True or False, got {self.slice_head!r}")
        for name in ("slicing", "discard", "tolerance"):
            if not isinstance(getattr(self, name), (Real, type(None))) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("multiple", "seed"):
            if not _is_int(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if self.discard is not None and self.basis != "pca":
            raise ValueError(f"discard reads widths off the spectrum; with basis={self.basis!r} give slicing or width")
        if sum(option is not None for option in (self.slicing, self.width, self.discard)) > 1:
            raise ValueError("give one of slicing, width and discard")
        if self.slicing is not None and not 0 <= self.slicing < 1:
            raise ValueError(f"slicing is the fraction to delete, 0 <= slicing < 1, got {self.slicing}")
        if self.discard is not None and not 0 <= self.discard < 1:
            raise ValueError(f"discard is a fraction of the variance, 0 <= discard < 1, got {self.discard}")
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance is a cosine deficit, 0 <= tolerance <= 1, got {self.tolerance}")

    def widths(self, D: int, boundaries: int) -> list[int | None]:
        """The width of every boundary; None where the spectrum is to decide.

        Raises:
            ValueError: widths that don't fit a model of `D` columns and so many boundaries, or this adapter form.
        """
        if self.discard is not None:
            widths = [None] * (boundaries - 1) + [None if self.slice_head else D]
        elif not isinstance(self.width, Sequence):
            k = self.width
            if k is None:
                k = slice_width(D, 0.25 if self.slicing is None else self.slicing, self.multiple)
            widths = [k] * (boundaries - 1) + [k if self.slice_head else D]
        else:
            widths = list(self.width)
        if len(widths) != boundaries:
            raise ValueError(f"got {len(widths)} widths; this model has {boundaries} boundaries (blocks + 1)")
        if not all(k is None or 1 <= k <= D for k in widths):
            raise ValueError(f"a width must be between 1 and the model's hidden size {D}, got {self.width}")
        if self.adapter == "none" and (None in widths or any(k > k_next for k, k_next in pairwise(widths))):
            raise ValueError("adapter='none' needs a width that never shrinks; use adapter='full' where widths vary")
        return widths


@dataclass
class SlicingReport:
    """What `slice_model` did; it stays on the model as ``model.slicing``."""

    options: SlicingOptions
    trained_width: int
    calibration_tokens: int
    widths: list[int] = field(default_factory=list)  # kept at each boundary, blocks + 1 of them
    eigenvalues: list[Tensor] = field(default_factory=list)  # of each boundary, all D of them, descending; float64
    discarded: list[float] = field(default_factory=list)  # share of each boundary's variance that was deleted
    ranks: list[int] = field(default_factory=list)  # of each block's adapter: k for a full one, 0 for none
    seconds: Counter = field(default_factory=Counter)  # by phase of the pass

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - began


def _is_int(value: object) -> bool:
    """Python's and NumPy's, but no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def slice_width(D: int, slicing: float, multiple: int = 8) -> int:
    """The width that is left of D when the fraction `slicing` is deleted, rounded down to a multiple of `multiple`.

    ``slicing=0`` keeps D whole, whatever the multiple.

    Raises:
        ValueError: nothing would be left.
    """
    if slicing == 0:
        return D
    width = int((1 - slicing) * D + 1e-6) // multiple * multiple
    if width == 0:
        raise ValueError(
            f"slicing {slicing} of {D} leaves less than one multiple of {multiple}; slice less, or give a smaller "
            "`multiple` or an explicit `width`"
        )
    return width
