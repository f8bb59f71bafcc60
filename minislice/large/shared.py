"""A calibration set that several processes share, and whose signal may lie in files.

Each process has its share of the batches; all have the same covariance, and so the same principal components. A file is
mapped into memory: the operating system keeps it there as long as there is room.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..calibration import Calibration, Signal
from ..corpus.batches import Batch
from .processes import Processes


class SharedCalibration(Calibration):
    """The share of one process.

    Args:
        batches: of the whole calibration set, the same in every process.
        processes: that share it, every one of which must call the same methods in the same order.
        folder: for files of its signal; in memory without.

    Raises:
        ValueError: there are fewer batches than processes.
    """

    def __init__(self, batches: list[Batch], processes: Processes, folder: Path | None = None):
        super().__init__(processes.share(batches))
        self.processes, self.folder = processes, folder

    def covariance(self, X: Signal, norm: nn.Module, boundary: int) -> Tensor:
        """Of all shares together."""
        return self.processes.summed(super().covariance(X, norm, boundary))

    def summed(self, total: Tensor) -> Tensor:
        """Over all shares together."""
        return self.processes.summed(total)

    def once(self, compute: Callable[[], tuple[Tensor, ...]], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the first process finds: another processor may turn eigenvectors otherwise, or order equals."""
        return self.processes.once(compute, like)

    def path(self, name: str) -> Path:
        """Of the file of a signal."""
        return self.folder / f"{name}-{self.processes.index}"

    def room(self, name: str, width: int, dtype: torch.dtype) -> Signal:
        """Room for a signal; a file that is there already is taken as it is."""
        if self.folder is None:
            return super().room(name, width, dtype)
        count = sum(sequences * length for sequences, length in self.shapes) * width
        path = self.path(name)
        if hasattr(os, "posix_fallocate"):  # or a full disk would show in the middle of a write, as a dead process
            try:
                with open(path, "ab") as file:
                    os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            except OSError as error:
                raise OSError(f"can't write {path}: {error}") from error
        rows = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(-1, width)
        return Signal(rows, self.shapes, self.batches[0].ids.device)
