"""A calibration set that several processes share, and one whose signals lie in files."""

import os
import secrets
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed

from ..architecture.folder import writing
from ..calibration import Calibration, Signal
from ..corpus.batches import Batch
from .processes import Processes


class SharedCalibration(Calibration):
    """One process's share of the batches. All processes have the same covariance, so the same principal components.

    Every process is given the whole set, and must call the same methods in the same order.
    """

    def __init__(self, batches: list[Batch], processes: Processes):
        if len(batches) < processes.count:
            raise ValueError(
                f"{processes.count} processes can't share {len(batches)} calibration batches; start fewer processes, "
                "or give more calibration sequences"
            )
        super().__init__(batches[processes.index :: processes.count])
        self.processes = processes

    def summed(self, total: Tensor) -> Tensor:
        """The sum over the shares of all processes."""
        if self.processes.count > 1:
            distributed.all_reduce(total)
        return total

    def agreed(self, *results: Tensor) -> tuple[Tensor, ...]:
        """The first process's results: another processor may give an eigenvector the other sign."""
        return self.processes.firsts(results)


class StoredCalibration(SharedCalibration):
    """A share whose signals lie in files of a folder, mapped into memory: the system keeps them there if there is room.

    A file is deleted when nothing refers to its signal any more, unless the file was spared.
    """

    def __init__(self, batches: list[Batch], processes: Processes, folder: Path):
        super().__init__(batches, processes)
        self.folder, self.spared = folder, set()

    def new_signal(self, width: int, dtype: torch.dtype) -> Signal:
        """A signal, in a new file."""
        return self.open(f"signal-{secrets.token_hex(4)}-{self.processes.index}", width, dtype)

    def open(self, name: str, width: int, dtype: torch.dtype) -> Signal:
        """The signal in a file of this name, which may be new."""
        path, size = self.folder / name, width * sum(sequences * tokens for sequences, tokens in self.shapes)
        if not path.exists() and hasattr(os, "posix_fallocate"):  # else a full disk would kill the process in a write
            with writing(path), open(path, "ab") as file:
                os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        rows = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(-1, width)
        signal = Signal(rows, self.shapes, self.batches[0].ids.device)
        signal.path, signal.deletion = path, weakref.finalize(signal, path.unlink, missing_ok=True)
        signal.deletion.atexit = False
        return signal

    def spare(self, signals: Sequence[Signal]) -> None:
        """Leave the files of these signals to a later run, and delete the files that were spared before."""
        for signal in signals:
            signal.deletion.detach()
        paths = {signal.path for signal in signals}
        for path in self.spared - paths:
            path.unlink()
        self.spared = paths
