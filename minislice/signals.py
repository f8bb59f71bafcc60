"""The signal of the whole calibration set at one boundary.

It is the largest thing that slicing holds besides weights: tokens x width. It lies in the memory of the machine, pinned
where a GPU reads it; the device that computes sees one batch of it at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Signal:
    """X for every calibration batch: ``signal[i]`` is [sequences, tokens, width], on the device that computes."""

    def __init__(self, rows: Tensor, shapes: Sequence[tuple[int, int]], device: torch.device):
        self.batches = rows.split([sequences * tokens for sequences, tokens in shapes])
        self.shapes, self.device = shapes, device

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self):
            raise IndexError(index)  # ends a loop over the batches
        host = self.batches[index].view(*self.shapes[index], -1)
        if self.device.type == "cuda" and not host.is_pinned():
            host = host.pin_memory()  # what isn't pinned can't be copied to the card while it computes
        return host.to(self.device, non_blocking=True)

    def __setitem__(self, index: int, x: Tensor) -> None:
        self.batches[index].view(x.shape).copy_(x)
