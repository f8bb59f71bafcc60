"""A calibration set that several processes share, and whose signal may lie in files.

Each process has its share of the batches; all have the same covariance, and so the same principal components. A file is
mapped into memory: the operating system keeps it there as long as there is room.
"""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

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
        self.tokens = sum(sequences * length for sequences, length in self.shapes)
        self.files = 0  # so many have been made
        self.unused: set[Path] = set()  # files whose signal nobody holds
        self.pinned: set[Path] = set()  # files that a later run starts from

    def summed(self, total: Tensor) -> Tensor:
        """Over all shares together."""
        return self.processes.summed(total)

    def agreed(self, *results: Tensor) -> tuple[Tensor, ...]:
        """What the first process has: another processor may turn eigenvectors otherwise, or order equals."""
        return self.processes.once(lambda: results, like=[x.contiguous() for x in results])

    def room(self, width: int, dtype: torch.dtype) -> Signal:
        """Room for a signal: a new file, or one whose signal nobody holds any longer."""
        if self.folder is None:
            return super().room(width, dtype)
        size = self.tokens * width * dtype.itemsize
        free = [path for path in self.unused - self.pinned if path.stat().st_size == size]
        if not free:
            self.files += 1
            return self.open(f"signal-{self.files}-{self.processes.index}", width, dtype)
        self.unused.discard(free[0])
        return self.open(free[0].name, width, dtype)

    def open(self, name: str, width: int, dtype: torch.dtype) -> Signal:
        """The signal in a file; a file that is there already is taken as it is."""
        path, size = self.folder / name, self.tokens * width
        if hasattr(os, "posix_fallocate"):  # or a full disk would show in the middle of a write, as a dead process
            try:
                with open(path, "ab") as file:
                    os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
            except OSError as error:
                raise OSError(f"can't write {path}: {error}") from error
        rows = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(-1, width)
        signal = Signal(rows, self.shapes, self.batches[0].ids.device)
        signal.path = path
        weakref.finalize(signal, self.unused.add, path)
        return signal

    def pin(self, signals: Sequence[Signal]) -> None:
        """Keep the files of these signals for a later run, and delete all others of this process."""
        self.pinned = {signal.path for signal in signals}
        for path in self.folder.glob(f"signal-*-{self.processes.index}"):
            if path not in self.pinned:
                path.unlink()
        self.files = max(int(path.name.split("-")[1]) for path in self.pinned)
        self.unused &= self.pinned
