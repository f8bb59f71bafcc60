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

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .adapters import make_adapter
from .blocks import LowRankAdapter, Network, inference
from .families import network
from .fusion import fuse
from .heads import tie_head
from .options import SlicingOptions, SlicingReport
from .pca import covariance, principal_components, width_keeping
from .rotation import (
    random_orthogonal,
    require_whole,
    rotate_embedding,
    rotate_input,
    rotate_output,
)
from .tokens import Batch, Tokens, token_batches


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
        tokens: calibration ids, [sequences, tokens], or an iterable of such batches (see `tokens.Tokens`).
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
    widths = options.widths(net.trained_width, len(net.blocks) + 1)
    if options.head == "tied" and not net.head_was_tied:
        raise ValueError("head='tied' is for models whose head shares the embedding's matrix; this one's never did")
    batches = token_batches(model, tokens, attention_mask, batch_size)
    if not net.is_fused:
        net = network(fuse(model))
    report = SlicingReport(
        options=options,
        trained_width=net.trained_width,
        calibration_tokens=sum(b.ids.numel() if b.mask is None else int(b.mask.sum()) for b in batches),
    )
    with inference(model):
        _interleaved_pass(net, batches, widths, report, progress)
        if options.head == "tied":
            net.head = tie_head(net.head, net.embeddings[0])
    model.slicing = report
    return model


def _interleaved_pass(
    net: Network, batches: list[Batch], widths: list[int | None], report: SlicingReport, progress: bool
) -> None:
    options = report.options
    generator = torch.Generator().manual_seed(options.seed)
    blocks, norms, D = net.blocks, net.norms, net.trained_width

    def basis_of(boundary: int, full: list[Tensor]) -> tuple[Tensor, int]:
        """Q of a boundary, [D, D], and the k of its columns to keep, from its full-width signal."""
        C = _signal_covariance(full, batches, norms[boundary], boundary, report)
        with report.timed("eigendecomposition"):
            eigenvalues, Q = principal_components(C, getattr(torch, options.pca_dtype))
            if options.basis == "random":
                Q = random_orthogonal(D, generator).to(C.device)
            elif options.basis == "column-norm":
                order = C.diagonal().argsort(descending=True, stable=True)
                Q = torch.eye(D, dtype=C.dtype, device=C.device)[:, order]
            k = widths[boundary]
            if k is None:
                k = width_keeping(eigenvalues, options.discard, options.multiple)
            if options.orientation == "random":
                Q = torch.cat([Q[:, :k] @ random_orthogonal(k, generator).to(Q.device), Q[:, k:]], dim=1)
        report.widths.append(k)
        report.eigenvalues.append(eigenvalues.cpu())
        report.discarded.append(((Q[:, k:].T @ C * Q[:, k:].T).sum() / C.trace()).item())
        return Q, k

    with report.timed("forward"):
        embedded = [net.embed(batch.ids, batch.mask) for batch in batches]
    contexts = [context for _, context in embedded]
    signal = [x for x, _ in embedded]  # at full width; sliced as soon as P is known
    Q, k = basis_of(0, signal)
    P = Q[:, :k]
    with report.timed("projection"):
        for embedding in net.embeddings:
            rotate_embedding(embedding, P)
        signal = [x @ P.to(x) for x in signal]

    for index, block in enumerate(tqdm(blocks, desc="slicing", disable=not progress, leave=False)):
        with report.timed("projection"):
            for linear in block.w_in:
                rotate_input(linear, P)
        full = []
        for x, context in zip(signal, contexts, strict=True):
            with report.timed("forward"):
                branch = block.branch(x, **context)
            with report.timed("projection"):
                full.append(torch.addmm(branch.flatten(0, 1), x.flatten(0, 1), P.T.to(x)).view_as(branch))
        Q, k = basis_of(index + 1, full)
        with report.timed("adapters"):
            like = block.w_out[0].weight
            P_next, block.adapter = make_adapter(P, Q, k, options.adapter, options.tolerance, like)
            report.ranks.append(_rank(block.adapter))
            lost = _lost(P, P_next, block.adapter)
        with report.timed("projection"):
            for linear in block.w_out:
                rotate_output(linear, P_next)
            for i, x in enumerate(signal):  # the adapter's x plus the sliced branch, by way of what is there already
                signal[i] = full[i] @ P_next.to(x)
                if lost is not None:
                    signal[i] += x @ lost.to(x)
        P = P_next
    with report.timed("projection"):
        rotate_input(net.head, P)


def _signal_covariance(
    full: list[Tensor], batches: list[Batch], norm: nn.Module, boundary: int, report: SlicingReport
) -> Tensor:
    """Eq. 8 over the whole calibration set."""
    total = None
    with report.timed("covariance"):
        for x, batch in zip(full, batches, strict=True):
            C = covariance(norm(x) if report.options.signal == "normalized" else x, batch.mask)
            if not torch.isfinite(C.diagonal()).all():
                raise ValueError(_not_finite(x, batch, boundary))
            total = C if total is None else total + C
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
    """What the adapter computes beyond P^T P_next, [k, k_next]; None where that is nothing but rounding."""
    if isinstance(adapter, nn.Linear):
        return None
    k, k_next = P.shape[1], P_next.shape[1]
    identity = torch.eye(k, k_next, dtype=P.dtype, device=P.device)
    if adapter is not None:
        A = adapter.A.to(P)
        identity[:, :k] -= A @ A.T
    difference = identity - P.T @ P_next
    return difference if difference.abs().max() > 1e-3 * torch.finfo(torch.float16).eps else None
