"""Section 3.4: one pass over the network rotates every boundary onto its principal components and deletes the least.

X is the signal with all D columns, and P the first k columns of Q, the principal components of RMSNorm(X). The sliced
signal Z = X P stands for X~ = Z P^T (eq. 9). Folding P into the matrices around a boundary deletes columns and rows.

    X = embeddings(tokens);   P = principal components of RMSNorm(X);   W_embd <- W_embd P;   Z = X P
    for each block:
        W_in <- P^T W_in
        X = Z P^T + sigma(RMSNorm(Z) W_in + b_in) W_out + b_out        one forward pass, of a network sliced up to here
        P' = principal components of RMSNorm(X);   S = P^T P'
        W_out <- W_out P';   b_out <- b_out P';   Z = X P';   P = P'
    W_head <- P^T W_head

RMSNorm(Z) divides by the trained width D. X is computed in the basis Q of the boundary before: there Z P^T is [Z, 0],
padding in place of a product for every token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .adapters import make_adapter, rank
from .architecture.blocks import Block, BlockLayer
from .architecture.linears import Linear, set_linear
from .architecture.network import Network, inference, network
from .calibration import Calibration, Signal, require_finite
from .corpus.batches import Batch, Tokens, count_tokens, token_batches
from .fusion import bare, fuse_network
from .heads import fit_head
from .options import SlicingOptions
from .pca import choose_basis, discarded_share, principal_components, width_keeping, without_mean
from .report import SlicingReport
from .rotation import changing, fold_embedding, fold_reader, fold_writer, require_whole


class Slicer:
    """The steps of the pass over a fused network; each step continues from where the last one ended.

    Q is the basis of the boundary that the pass has reached, and Z is the calibration set's signal there.

    Args:
        widths: the width of each boundary; None where the spectrum decides (`discard`).
        report: is filled in, one boundary after another.
    """

    def __init__(self, net: Network, calibration: Calibration, widths: list[int | None], report: SlicingReport):
        self.net, self.calibration, self.widths, self.report = net, calibration, widths, report
        self.options = report.options
        self.norms = [bare(norm, net) for norm in (*(block.norm for block in self.blocks), net.final_norm)]
        self.whole = self.options.whole_boundaries(widths)
        self.adapter_forms = self.options.adapter_forms(widths)
        self.generator = torch.Generator().manual_seed(self.options.seed)
        self.Q: Float64[Tensor, "D D"] | None = None
        self.Z: Signal | None = None

    @property
    def blocks(self) -> list[Block]:
        """The blocks that are sliced."""
        return self.net.blocks

    @property
    def boundary(self) -> int:
        """The number of the boundary that the pass has reached."""
        return len(self.report.widths) - 1

    @property
    def P(self) -> Float64[Tensor, "D k"]:
        """The columns of Q that are kept."""
        return self.Q[:, : self.report.widths[-1]]

    def slice_embeddings(self) -> None:
        """Boundary 0, which the embeddings write."""
        X = self.calibration.embed(self.net)  # [tokens, D]
        self.Q, k, *spectrum = self.find_basis(X, 0)
        self.report.add_boundary(k, *spectrum)  # the pass is at boundary 0
        if 0 not in self.whole:
            for embedding in self.net.embeddings:
                fold_embedding(embedding, self.P)  # W_embd <- W_embd P             [vocabulary, k]
        self.Z = self.calibration.project(X, self.P)  # Z = X P                     [tokens, k]

    def slice_layer(self, layer: BlockLayer) -> None:
        for block in layer.blocks:
            self.slice_block(block)

    def slice_block(self, block: Block) -> None:
        """From one boundary to the next: the block reads the first and writes the second."""
        Q, P, Z = self.Q, self.P, self.Z  # [D, D], [D, k], [tokens, k]
        for linear in block.w_in:
            fold_reader(linear, P)  # W_in <- P^T W_in                              [k, inner]
        self.solve(block)
        with folded(block.w_out, Q):  # all D columns, for the next principal components
            X = self.calibration.forward(block, Z)  # X Q                           [tokens, D]
        Q_next, k_next, *spectrum = self.find_basis(X, self.boundary + 1)
        form, like = self.adapter_forms[self.boundary], next(block.parameters())
        P_next, block.adapter, lost = make_adapter(P, Q_next, k_next, form, self.options.tolerance, like)  # S = P^T P'
        for linear in block.w_out:
            fold_writer(linear, P_next)  # W_out <- W_out P', b_out <- b_out P'     [inner, k']
        self.Z = self.calibration.project(X, Q.T @ P_next)  # Z' = X P'             [tokens, k']
        if lost.shape[1]:
            self.calibration.add(self.Z, Z, lost)  # the approximate adapter is S + [lost lost^T, 0]
        self.Q = torch.cat([P_next, Q_next[:, k_next:]], dim=1)  # [D, D]
        self.report.ranks.append(rank(block.adapter))
        self.report.add_boundary(k_next, *spectrum)  # the pass is at the next boundary: P = P'

    def solve(self, block: Block) -> None:
        """Empty here: `beyond.slicing` overrides it, to change the block before it runs."""

    def slice_head(self) -> None:
        """The last boundary, which the head reads."""
        if self.boundary not in self.whole:
            fold_reader(self.net.head, self.P)  # W_head <- P^T W_head              [k, vocabulary]
        if self.options.head == "fitted":
            self.net.head = fit_head(self.net.head, self.net.embeddings[0])

    def find_basis(self, X: Signal, boundary: int) -> tuple[Float64[Tensor, "D D"], int, Float64[Tensor, " D"], float]:
        """The basis of a boundary, how many of its columns to keep, all eigenvalues, and the share that is deleted.

        Args:
            X: the signal there, in the basis Q of the boundary before.
        """
        options = self.options
        norm = self.norms[boundary] if options.signal == "normalized" else nn.Identity()
        where = f"block {self.blocks[boundary - 1].number}" if boundary else "the embeddings"
        C = self.calibration.covariance(X, norm, where)  # eq. 8
        if self.Q is not None:
            C = self.Q @ C @ self.Q.T
        if self.net.subtracts_mean:
            C = without_mean(C)
        eigenvalues, Q = self.calibration.agreed(*principal_components(C, getattr(torch, options.pca_dtype)))
        k = self.widths[boundary]
        if k is None:
            k = width_keeping(eigenvalues, options.discard, options.multiple)
        if boundary in self.whole:
            Q = torch.eye(k, dtype=C.dtype, device=C.device)
        else:
            Q = choose_basis(Q, k, C, options.basis, options.orientation, self.generator)
        return Q, k, eigenvalues, discarded_share(C, Q, k)


def slice_model(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    batch_size: int = 8,
    progress: bool = False,
    calibration: Callable[[list[Batch]], Calibration] = Calibration,
    slicer: type[Slicer] = Slicer,
    **options,
) -> PreTrainedModel:
    """Slice a model in place, on a calibration set; a model that isn't fused is fused first (section 3.4).

        minislice.slice_model(model, tokens, slicing=0.25)

    Args:
        tokens: calibration ids, [sequences, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: as the tokens; 0 where padded. Padding does not enter the covariance.
        calibration: what holds the calibration set; `large.shared.SharedCalibration` shares it among processes.
        slicer: the class that does the steps; `minislice.slice_model` uses `beyond.slicing.BeyondSlicer`.
        options: the fields of `SlicingOptions`.

    Returns the same model object; ``model.slicing`` is a `SlicingReport`.

    Raises:
        ValueError: options or tokens that don't fit the model, or a model that is sliced already. The model is then
            unchanged. Also a signal with a NaN or an infinity: the message names the block and the sequence. The model
            is then half changed: load it again.
    """
    net = network(model)
    require_whole(net, "slice")
    options = SlicingOptions(**options).resolved(net)
    if options.beyond and slicer is Slicer:
        raise ValueError(f"not in the paper: {options.beyond}; use minislice.slice_model")
    widths = options.fit(net)
    batches = token_batches(model, tokens, attention_mask, batch_size, options.least_batches)
    calibration_set = calibration(batches)
    if not net.is_fused:
        fuse_network(net, keep_tie=options.head == "tied")
    steps = slicer(net, calibration_set, widths, SlicingReport(options, net.trained_width, count_tokens(batches)))
    with changing(net.model), inference(model):
        steps.slice_embeddings()
        for layer in tqdm(net.layers, desc="slicing", disable=not progress, leave=False):
            steps.slice_layer(layer)
        require_finite(model.named_parameters())
        steps.slice_head()
    steps.report.warn_of_too_few_tokens()
    model.slicing = steps.report
    return model


@contextmanager
def folded(linears: Sequence[Linear], Q: Float64[Tensor, "D D"]) -> Iterator[None]:
    """W_out Q and b_out Q while it is open. Then W_out is back: the next fold starts from it, and rounds only once."""
    trained = [(linear, linear.weight, linear.bias) for linear in linears]
    for linear in linears:
        fold_writer(linear, Q)
    try:
        yield
    finally:
        for linear, weight, bias in trained:
            set_linear(linear, weight, bias)
