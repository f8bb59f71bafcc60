"""Section 3.4: the interleaved pass that rotates every block onto its principal components and deletes the least.

Eq. 9, with the deletion matrix already multiplied into the basis (P = Q D, D x k, orthonormal columns): the signal X
is replaced by Z = X P, which stands for X~ = Z P^T. Rows of W_in, columns of W_out and W_embd, rows and columns of the
residual adapters are deleted with it.

The pass, for each boundary l in order:

1. the signal at the boundary, full width, in the network as it is by then: sliced up to block l - 1
2. P_l from its principal components (eq. 8)
3. fold P_l into whoever writes the boundary (embeddings, or W_out of block l - 1) and whoever reads it (W_in, or head)
4. run block l once: its full-width output is X P_l^T, or what its adapter makes of it, plus its branch
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .adapters import make_adapter
from .architecture.blocks import Block, BlockLayer, LowRankAdapter
from .architecture.network import Network, inference, network
from .calibration import Signal
from .corpus.batches import Batch, Tokens, count_tokens, token_batches
from .fusion import bare, fuse
from .heads import tie_head
from .large import processes
from .options import SlicingOptions, SlicingReport
from .pca import covariance, principal_components, width_keeping
from .rotation import random_orthogonal, require_whole, rotate_embedding, rotate_input, rotate_output


def slice_model(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    batch_size: int = 8,
    progress: bool = False,
    **options,
) -> PreTrainedModel:
    """Slice a model in place, on a calibration set; a model that isn't fused is fused first (section 3.4).

        minislice.slice_model(model, tokens, slicing=0.25)
        minislice.slice_model(model, tokens, width=120, signal="raw", slice_head=True)

    Args:
        tokens: calibration ids, [sequences, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: as the tokens; 0 where padded. Padding does not enter the covariance.
        batch_size: sequences a forward pass.
        progress: show a progress bar.
        options: the fields of `SlicingOptions`, where each is explained.

    Returns the same model object; ``model.slicing`` is a `SlicingReport`.

    Raises:
        ValueError: options or tokens that don't fit the model, or a model that is sliced already; it is then as it was.
            Also a signal with a NaN or an infinity, named by block and sequence.
    """
    options = SlicingOptions(**options)
    net = network(model)
    require_whole(net, "slice")
    widths = widths_of(net, options)
    batches = token_batches(model, tokens, attention_mask, -(-batch_size // processes.count()))
    share = processes.share(batches)
    if not net.is_fused:
        net = network(fuse(model))
    report = SlicingReport(options, net.trained_width, count_tokens(batches))
    with inference(model):
        InterleavedPass(net, share, widths, report).run(progress)
    model.slicing = report
    return model


def widths_of(net: Network, options: SlicingOptions) -> list[int | None]:
    """The width of every boundary, as `SlicingOptions.widths`, for a network that these options fit.

    Raises:
        ValueError: they don't.
    """
    if options.head == "tied" and not net.head_was_tied:
        raise ValueError("head='tied' is for models whose head shares the embedding's matrix; this one's never did")
    return options.widths(net.trained_width, len(net.blocks) + 1)


class InMemory:
    """Where the weights of a network are while the pass runs over it: in memory, all of them, all the time.

    `streaming.FromShards` is the other place: it brings each part in when its turn comes, and takes it out again.
    """

    def part(self, index: int, position: "InterleavedPass") -> AbstractContextManager:
        """Part 0 is the embeddings, part i the i-th layer, the last part final norm and head."""
        return nullcontext()

    def reached(self, position: "InterleavedPass") -> None:
        """Called when a part is done."""

    def signal_file(self, name: str) -> Path | None:
        """The file for a signal; None to have it in memory."""
        return None


class InterleavedPass:
    """The pass over one network, part by part: embeddings, each layer, head.

    Between two parts, all that the rest of the pass depends on is `done`, `P`, `signal`, `generator` and `report`.

    Args:
        net: fused, or fused by `weights` part by part.
        batches: the calibration set, or this process's share of it.
        widths: of every boundary, None where the spectrum decides.
    """

    def __init__(
        self,
        net: Network,
        batches: list[Batch],
        widths: list[int | None],
        report: SlicingReport,
        weights: InMemory | None = None,
    ):
        self.net, self.batches, self.widths, self.report = net, batches, widths, report
        self.options, self.weights = report.options, weights or InMemory()
        self.norms = [bare(norm, net.trained_width) for norm in net.norms]  # what reads each boundary
        self.generator = torch.Generator().manual_seed(int(report.options.seed))
        self.done = 0  # parts
        self.contexts: list[dict] = []  # of each batch: what attention needs besides the signal
        self.P: Tensor | None = None  # the basis of the boundary that the pass has reached, [D, k]
        self.signal: Signal | None = None  # the calibration set there, in that basis

    @property
    def boundary(self) -> int:
        """The boundary that the pass has reached; -1 before the embeddings."""
        return len(self.report.widths) - 1

    def run(self, progress: bool = False) -> None:
        """Do what is left of the pass."""
        layers = [partial(self._slice_layer, layer) for layer in self.net.layers]
        parts = [self._embed, *layers, self._slice_head]
        if self.done == len(parts):
            return
        for index, work in enumerate(tqdm(parts, desc="slicing", disable=not progress, leave=False)):
            if 0 < index < self.done:
                continue  # but the embeddings are always needed, for the contexts
            with self.weights.part(index, self):
                work()
            if index == self.done:
                self.done += 1
                self.weights.reached(self)

    def _embed(self) -> None:
        full = None if self.done else self.room(self.net.trained_width, "full")
        shared = {}  # one context for all unpadded batches of a shape
        for index, batch in enumerate(self.batches):
            with self._timed("forward"):
                x, context = self.net.embed(batch.ids, batch.mask)
            self.contexts.append(context if batch.mask is not None else shared.setdefault(batch.ids.shape, context))
            if full:
                full[index] = x
        if full:
            Q, k = self._basis(full)
            self.P = Q[:, :k].contiguous()
            with self._timed("projection"):
                for embedding in self.net.embeddings:
                    rotate_embedding(embedding, self.P)
                self._project(full, None)

    def _slice_layer(self, layer: BlockLayer) -> None:
        for block in layer.blocks:
            self._slice_block(block)

    def _slice_head(self) -> None:
        with self._timed("projection"):
            rotate_input(self.net.head, self.P)
            if self.options.head == "tied":
                self.net.head = tie_head(self.net.head, self.net.embeddings[0])

    def _slice_block(self, block: Block) -> None:
        P = self.P
        with self._timed("projection"):
            for linear in block.w_in:
                rotate_input(linear, P)
        full = self.room(self.net.trained_width, "full")
        back = P.T.to(full.device, full.dtype)
        for index, context in enumerate(self.contexts):
            x = self.signal[index]
            with self._timed("forward"):
                branch = block.branch(x, **context)
            with self._timed("projection"):
                full[index] = torch.addmm(branch.flatten(0, 1), x.flatten(0, 1), back).view_as(branch)
        Q, k = self._basis(full)
        with self._timed("adapters"):
            like = block.w_out[0].weight
            self.P, block.adapter = make_adapter(P, Q, k, self.options.adapter, self.options.tolerance, like)
            self.report.ranks.append(_rank(block.adapter))
            truncated = self.options.adapter == "none" or self.options.tolerance > 0
            lost = _lost(P, self.P, block.adapter) if truncated else None
        with self._timed("projection"):
            for linear in block.w_out:
                rotate_output(linear, self.P)
            self._project(full, lost)

    def _project(self, full: Signal, lost: Tensor | None) -> None:
        """The signal in the basis P, from what it is at full width; `lost` is what an adapter adds, of the old one."""
        before = self.signal
        signal = self.room(self.P.shape[1], f"signal-{self.boundary}")
        P = self.P.to(signal.device, signal.dtype)
        for index, x in enumerate(full):
            projected = x @ P
            if lost is not None:
                projected += before[index] @ lost.to(x)
            signal[index] = projected
        self.signal = signal

    def _basis(self, full: Signal) -> tuple[Tensor, int]:
        """Q of the next boundary, [D, D], and the k of its columns to keep, from the signal there at full width."""
        options, D, boundary = self.options, self.net.trained_width, self.boundary + 1
        with self._timed("covariance"):
            norm = self.norms[boundary] if options.signal == "normalized" else nn.Identity()
            C = processes.summed(_signal_covariance(full, self.batches, norm, boundary))
        with self._timed("eigendecomposition"):
            eigenvalues, Q = processes.once(
                lambda: principal_components(C, getattr(torch, options.pca_dtype)), like=(C[0], C)
            )
            if options.basis == "random":
                Q = random_orthogonal(D, self.generator).to(C.device)
            elif options.basis == "column-norm":
                order = C.diagonal().argsort(descending=True, stable=True)
                Q = torch.eye(D, dtype=C.dtype, device=C.device)[:, order]
            k = self.widths[boundary]
            if k is None:
                k = width_keeping(eigenvalues, options.discard, options.multiple)
            if options.orientation == "random":
                Q = torch.cat([Q[:, :k] @ random_orthogonal(k, self.generator).to(Q.device), Q[:, k:]], dim=1)
        self.report.widths.append(k)
        self.report.eigenvalues.append(eigenvalues.cpu())
        share = (Q[:, k:].T @ C * Q[:, k:].T).sum() / C.trace()
        self.report.discarded.append(max(0.0, share.item()))  # rounding may make it less
        return Q, k

    def room(self, width: int, name: str) -> Signal:
        """Where a signal of this width goes, or is."""
        ids, weight = self.batches[0].ids, self.net.embeddings[0].weight
        shapes = [tuple(batch.ids.shape) for batch in self.batches]
        return Signal(shapes, width, weight.dtype, ids.device, self.weights.signal_file(name))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        with self.report.timed(phase):
            yield
            if self.batches[0].ids.is_cuda:
                torch.cuda.synchronize()  # its calls return before the work is done


def _signal_covariance(full: Signal, batches: list[Batch], norm: nn.Module, boundary: int) -> Tensor:
    """Eq. 8 over the whole calibration set, or the share of this process."""
    total = None
    for x, batch in zip(full, batches, strict=True):
        total = covariance(norm(x), batch.mask, total)
        if not torch.isfinite(total.diagonal()).all():
            raise ValueError(_not_finite(x, batch, boundary))
    return total


def _not_finite(x: Tensor, batch: Batch, boundary: int) -> str:
    bad = ~torch.isfinite(x).all(-1)
    if batch.mask is not None:
        bad &= batch.mask
    rows = bad.any(-1).nonzero().flatten().tolist()
    where = "the embeddings" if boundary == 0 else f"block {boundary - 1}"
    which = f"calibration sequence {batch.first_sequence + rows[0]}" if rows else "the calibration set"
    return f"the signal behind {where} has a NaN or an infinity on {which}; check the weights, or use a wider dtype"


def _rank(adapter: nn.Module | None) -> int:
    if adapter is None:
        return 0
    return adapter.rank if isinstance(adapter, LowRankAdapter) else min(adapter.weight.shape)


def _lost(P: Tensor, P_next: Tensor, adapter: nn.Module | None) -> Tensor | None:
    """What an adapter of aligned bases computes beyond P^T P_next, [k, k_next]; None for one that is P^T P_next."""
    if isinstance(adapter, nn.Linear):
        return None
    k, k_next = P.shape[1], P_next.shape[1]
    identity = torch.eye(k, k_next, dtype=P.dtype, device=P.device)
    if adapter is not None:
        A = adapter.A.to(P)
        identity[:, :k] -= A @ A.T
    return identity - P.T @ P_next
