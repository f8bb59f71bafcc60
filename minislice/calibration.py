"""The signal of the calibration set at one boundary: all of X, the network between two blocks.

It is the largest thing that the pass holds besides weights: tokens x width. It lies in the memory of the machine,
pinned where a GPU reads it, or in a file that the operating system maps into memory, and keeps there as long as there
is room; the device that computes sees one batch of it at a time.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class Signal:
    """X for every calibration batch: ``signal[i]`` is [sequences, tokens, width], on the device that computes.

    Args:
        shapes: (sequences, tokens) of each batch.
        path: of the file that holds it; in memory without.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        path: Path | None = None,
    ):
        self.shapes, self.dtype, self.device = list(shapes), dtype, device
        sizes = [sequences * tokens for sequences, tokens in self.shapes]
        if path is None:
            rows = torch.empty(sum(sizes), width, dtype=dtype, pin_memory=device.type == "cuda")
        else:
            count = sum(sizes) * width
            if hasattr(os, "posix_fallocate"):  # or a full disk would show in the middle of a write, as a dead process
                with open(path, "ab") as file:
                    os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            rows = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(-1, width)
        self.batches = rows.split(sizes)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self):
            raise IndexError(index)  # ends a loop over the batches
        host = self.batches[index].view(*self.shapes[index], -1)
        if self.device.type == "cuda" and not host.is_pinned():
            host = host.pin_memory()  # a file's pages can't be read by the card while it computes
        return host.to(self.device, non_blocking=True)

    def __setitem__(self, index: int, x: Tensor) -> None:
        self.batches[index].view(x.shape).copy_(x)
