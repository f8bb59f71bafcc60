"""The calibration set (section 3.4): its batches, its signal at one boundary after another, and sums over it."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from .architecture.blocks import Block
from .architecture.network import Network
from .corpus.batches import Batch
from .pca import covariance


class Signal:
    """The signal X of the whole calibration set at one boundary: ``signal[i]`` is batch i, [sequences, tokens, width].

    Besides the weights it is the largest thing that slicing holds. It lies in the memory of the machine, pinned where a
    GPU reads it; the device that computes sees one batch at a time.
    """

    def __init__(self, rows: Tensor, shapes: Sequence[tuple[int, int]], device: torch.device):
        self.batches = rows.split([sequences * tokens for sequences, tokens in shapes])
        self.shapes, self.device = shapes, device

    def __getitem__(self, index: int) -> Tensor:
        host = self.batches[index].view(*self.shapes[index], -1)
        if self.device.type == "cuda" and not host.is_pinned():
            host = host.pin_memory()  # only pinned memory is copied to the card while it computes
        return host.to(self.device, non_blocking=True)

    def __setitem__(self, index: int, x: Tensor) -> None:
        self.batches[index].view(x.shape).copy_(x)


class Calibration:
    """The batches of the calibration set, and for each batch what each layer needs besides the signal.

    All of it is in memory, in this process; `large.shared` has one for several processes, and one with files.
    """

    def __init__(self, batches: list[Batch]):
        self.batches = batches
        self.shapes = [tuple(batch.ids.shape) for batch in batches]
        self.contexts: list[list[dict]] = []  # of each batch, for each layer: its mask, RoPE ...

    def embed(self, net: Network) -> Signal:
        """X at boundary 0, [tokens, D]; notes the contexts."""
        signal = self.new_signal(net.trained_width, net.embeddings[0].weight.dtype)
        self.contexts, shared = [], {}  # all unpadded batches of one shape share a context
        for index, batch in enumerate(self.batches):
            signal[index], contexts = net.embed(batch.ids, batch.mask)
            alike = contexts if batch.mask is not None else shared.setdefault(self.shapes[index], contexts)
            self.contexts.append(alike)
        return signal

    def forward(self, block: Block, Z: Signal) -> Signal:
        """[Z, 0] + sigma(RMSNorm(Z) W_in + b_in) W_out + b_out, [tokens, D]; W_out has all its D columns."""
        wide = self.new_signal(block.w_out[0].out_features, Z[0].dtype)
        for index, z in enumerate(Z):
            x = block.branch(z, **self.contexts[index][block.layer])
            x[..., : z.shape[-1]] += z
            wide[index] = x
        return wide

    def project(self, X: Signal, P: Float64[Tensor, "D k"]) -> Signal:
        """X P, [tokens, k]."""
        P = P.to(X[0])
        narrow = self.new_signal(P.shape[1], P.dtype)
        for index, x in enumerate(X):
            narrow[index] = x @ P
        return narrow

    def add(self, Z: Signal, before: Signal, lost: Float64[Tensor, "k m"]) -> None:
        """Z <- Z + [Z_before lost lost^T, 0], in place; `lost` is from `adapters.make_adapter`."""
        lost = lost.to(Z[0])
        for index, z in enumerate(Z):
            z[..., : lost.shape[0]] += (before[index] @ lost) @ lost.T
            Z[index] = z

    def covariance(self, X: Signal, norm: nn.Module, where: str) -> Float64[Tensor, "D D"]:
        """Eq. 8 over the whole calibration set; padding doesn't enter.

        Args:
            where: what wrote the signal, for the message.

        Raises:
            ValueError: the signal has a NaN or an infinity; the message says where, and on which sequence.
        """
        total = None
        for x, batch in zip(X, self.batches, strict=True):
            total = covariance(norm(x), batch.mask, total)
            if not torch.isfinite(total.diagonal()).all():
                raise ValueError(not_finite(x, batch, where))
        return self.summed(total)

    def summed(self, total: Tensor) -> Tensor:
        """A sum over these batches -> the sum over the whole calibration set."""
        return total

    def agreed(self, *results: Tensor) -> tuple[Tensor, ...]:
        """The same results in all processes: the first process's."""
        return results

    def new_signal(self, width: int, dtype: torch.dtype) -> Signal:
        """A signal, [tokens, width], that is to be filled."""
        device = self.batches[0].ids.device
        tokens = sum(sequences * length for sequences, length in self.shapes)
        rows = torch.empty(tokens, width, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
        return Signal(rows, self.shapes, device)


def not_finite(x: Tensor, batch: Batch, where: str) -> str:
    bad = ~torch.isfinite(x).all(-1)
    if batch.mask is not None:
        bad &= batch.mask
    rows = bad.any(-1).nonzero().flatten().tolist()
    which = f"calibration sequence {batch.first_sequence + rows[0]}" if rows else "the calibration set"
    return f"the signal after {where} has a NaN or an infinity on {which}; check the weights, or use a wider dtype"


def require_finite(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise a ValueError for weights, given by name, with a NaN or an infinity; the signal may not show it."""
    for name, parameter in parameters:
        if parameter.is_meta or not parameter.numel():
            continue
        ends = torch.stack(torch.aminmax(parameter))  # NaN or infinite if any entry is; `isfinite` alone takes long
        if not torch.isfinite(ends).all():
            raise ValueError(f"{name} has a NaN or an infinity; check the weights, or use a wider dtype")
