"""What slicing has done to a model."""

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .options import SlicingOptions


@dataclass
class SlicingReport:
    """What `slice_model` did; it stays on the model as ``model.slicing``."""

    options: SlicingOptions
    trained_width: int
    calibration_tokens: int
    widths: list[int] = field(default_factory=list)  # the width of each boundary, blocks + 1 of them
    eigenvalues: list[Tensor] = field(default_factory=list)  # all of each boundary's, descending; float64
    discarded: list[float] = field(default_factory=list)  # the share of each boundary's variance that was deleted
    ranks: list[int] = field(default_factory=list)  # the rank of each block's adapter, as `adapters.rank` has it
    neurons: list[int] = field(default_factory=list)  # left in each MLP; none is listed by the paper's own steps

    def add_boundary(self, width: int, eigenvalues: Tensor, discarded: float) -> None:
        """Record the next boundary."""
        self.widths.append(width)
        self.eigenvalues.append(eigenvalues.cpu())
        self.discarded.append(discarded)

    def warn_of_too_few_tokens(self) -> None:
        """Warn if the calibration set spans fewer dimensions of the first narrowed boundary than were kept."""
        D = self.trained_width
        boundary = next((boundary for boundary, k in enumerate(self.widths) if k < D), None)
        if boundary is None or self.options.basis != "pca":
            return
        eigenvalues, k = self.eigenvalues[boundary], self.widths[boundary]
        rounding = 2 * torch.finfo(torch.float32).eps * eigenvalues[0]  # of `pca.covariance`
        spanned = int((eigenvalues > rounding).sum())
        if spanned < k:
            warnings.warn(
                f"the {self.calibration_tokens} calibration tokens are too few or too much alike: at boundary "
                f"{boundary} they span {spanned} of {D} dimensions, and {k} were kept, so that {k - spanned} of "
                "these are arbitrary; calibrate on more text, or keep less",
                stacklevel=1,  # this line: what slices lies at another depth for each caller
            )
