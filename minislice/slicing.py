"""Section 3.4: the interleaved pass that rotates every boundary onto its principal components and deletes the least.

P is the first k columns of Q, the principal components of a boundary: Z = X P is the sliced signal, and stands for
X~ = Z P^T (eq. 9). Folding P into the matrices that write and read a boundary deletes their columns and rows.

    X~ = embeddings(tokens);   P = principal components of X~;   W_embd <- W_embd P;   Z = X~ P
    for each block:
        W_in <- P^T W_in
        X~ = Z P^T + sigma(RMSNorm(Z) W_in + b_in) W_out + b_out       one forward pass, of a network sliced up to here
        P' = principal components of X~;   S = P^T P'
        W_out <- W_out P';   b_out <- b_out P';   Z = X~ P';   P = P'
    W_head <- P^T W_head

X~ is computed in the basis Q of the boundary before, all D columns of it: there Z P^T is [Z, 0], a padding, and the
norm that reads it gives the same (eq. 2).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .adapters import make_adapter, rank
from .architecture.blocks import Block, BlockLayer
from .architecture.linears import set_weight
from .architecture.network import Network, inference, network
from .beyond.neurons import solve_block
from .calibration import Calibration, Signal
from .corpus.batches import Batch, Tokens, count_tokens, token_batches
from .fusion import bare, fuse
from .heads import fit_head
from .options import SlicingOptions, takes_options
from .pca import choose_basis, discarded_share, width_keeping, without_mean
from .report import SlicingReport
from .rotation import fold_embedding, fold_reader, fold_writer, require_whole


@takes_options
def slice_model(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    batch_size: int = 8,
    progress: bool = False,
    calibration: Callable[[list[Batch]], Calibration] = Calibration,
    **options,
) -> PreTrainedModel:
    """Slice a model in place, on a calibration set; a model that isn't fused is fused first (section 3.4).

        minislice.slice_model(model, tokens, slicing=0.25)

    Args:
        tokens: calibration ids, [sequences, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: as the tokens; 0 where padded. Padding does not enter the covariance.
        batch_size: sequences a forward pass.
        progress: show a progress bar.
        calibration: what holds the calibration set; `large.shared.SharedCalibration` shares it among processes.
        options: the fields of `SlicingOptions`.

    Returns the same model object; ``model.slicing`` is a `SlicingReport`.

    Raises:
        ValueError: options or tokens that don't fit the model, or a model that is sliced already; it is then as it was.
            Also a signal with a NaN or an infinity, named by block or layer, and by sequence.
    """
    net = network(model)
    require_whole(net, "slice")
    options = SlicingOptions(**options).resolved(net)
    widths = options.widths_of(net)
    batches = token_batches(model, tokens, attention_mask, batch_size)
    held = calibration(batches)
    if not net.is_fused:
        net = network(fuse(model, keep_tie=options.head == "tied"))
    slicer = Slicer(net, held, widths, SlicingReport(options, net.trained_width, count_tokens(batches)))
    with inference(model):
        slicer.slice_embeddings()
        for index, layer in enumerate(tqdm(net.layers, desc="slicing", disable=not progress, leave=False)):
            slicer.slice_layer(layer, index)
        slicer.slice_head()
    slicer.report.warn_of_missing_rank()
    model.slicing = slicer.report
    return model


class Slicer:
    """The steps of the pass over one network, each of which goes on from what the one before has left.

    `boundary` is the one that the pass has reached, Q its basis, the first k columns of which are kept, and Z the
    calibration set's signal there.
    """

    def __init__(self, net: Network, calibration: Calibration, widths: list[int | None], report: SlicingReport):
        self.net, self.calibration, self.widths, self.report = net, calibration, widths, report
        self.options = report.options
        self.dropped = net.numbered(report.options.drop)
        left = [block for block in net.blocks if block not in self.dropped]
        mlps = [block for block in left if block.neurons]
        report.neurons = self.options.neurons_of([block.neurons for block in mlps])
        self.delete = {block: block.neurons - count for block, count in zip(mlps, report.neurons, strict=True)}
        self.norms = [bare(norm, net) for norm in (*(block.norm for block in left), net.final_norm)]  # that read
        self.kept = self.options.kept(widths)  # boundaries in the model's own basis
        self.generator = torch.Generator().manual_seed(int(report.options.seed))
        self.boundary, self.k = -1, 0
        self.Q: Float64[Tensor, "D D"] | None = None
        self.Z: Signal | None = None
        self.dense, self.passed = None, 0  # Z in the dense network, to repair by; how many of its blocks are behind

    @property
    def P(self) -> Float64[Tensor, "D k"]:
        """The basis that is kept of the boundary."""
        return self.Q[:, : self.k]

    def slice_embeddings(self) -> None:
        """Boundary 0: its writers are the embeddings."""
        X = self.calibration.embed(self.net)
        if self.options.repair:
            self.dense = self.calibration.copy(X, "dense-0")
        self.Q, self.k = self._basis(X)
        for embedding in () if 0 in self.kept else self.net.embeddings:
            fold_embedding(embedding, self.P)  # W_embd <- W_embd P
        self.boundary, self.Z = 0, self.calibration.project(X, self.P, 0)  # Z = X~ P

    def slice_layer(self, layer: BlockLayer, index: int) -> None:
        """All blocks of a layer."""
        for block in layer.blocks:
            self.passed += 1
            if self.options.repair:
                self.dense = self.calibration.forward(block, index, self.dense, f"dense-{self.passed}")
            if block not in self.dropped:
                self.slice_block(block, index)
        layer.drop(self.dropped)

    def slice_block(self, block: Block, layer: int) -> None:
        """From a boundary to the next: the block between them reads the one and writes the other."""
        Q, P, Z = self.Q, self.P, self.Z
        for linear in block.w_in:
            fold_reader(linear, P)  # W_in <- P^T W_in
        solve_block(self.calibration, block, layer, Z, P, self.dense, self.delete.get(block, 0))  # if asked for
        trained = [(linear, linear.weight, linear.bias) for linear in block.w_out]
        for linear in block.w_out:
            fold_writer(linear, Q)  # all D columns, in the basis Q
        X = self.calibration.forward(block, layer, Z)  # X~ Q = [Z, 0] + sigma(RMSNorm(Z) W_in + b_in) W_out Q + b_out Q
        Q_next, k = self._basis(X)
        like, options = next(block.parameters()), self.options
        form = "full" if len({self.boundary, self.boundary + 1} & self.kept) == 1 else options.adapter
        P_next, block.adapter, E = make_adapter(P, Q_next, k, form, options.tolerance, like)  # S = P^T P'
        for linear, weight, bias in trained:
            set_weight(linear, weight, bias)
            fold_writer(linear, P_next)  # W_out <- W_out P', b_out <- b_out P'
        self.boundary += 1
        self.Z = self.calibration.project(X, Q.T @ P_next, self.boundary)  # Z' = X~ P'
        if E.shape[1]:
            self.calibration.add(self.Z, Z, E)  # what an approximate adapter carries over beyond S
        self.Q, self.k = torch.cat([P_next, Q_next[:, k:]], dim=1), k
        self.report.ranks.append(rank(block.adapter))

    def slice_head(self) -> None:
        """The last boundary's reader."""
        if self.boundary not in self.kept:
            fold_reader(self.net.head, self.P)  # W_head <- P^T W_head
        if self.options.head == "fitted":
            self.net.head = fit_head(self.net.head, self.net.embeddings[0])

    def _basis(self, X: Signal) -> tuple[Float64[Tensor, "D D"], int]:
        """Q of the next boundary, and the k of its columns to keep, from the signal there, which is in this one's Q."""
        options, boundary = self.options, self.boundary + 1
        norm = self.norms[boundary] if options.signal == "normalized" else nn.Identity()
        C = self.calibration.covariance(X, norm, boundary)  # eq. 8
        if self.Q is not None:
            C = self.Q @ C @ self.Q.T
        if self.net.subtracts_mean:
            C = without_mean(C)
        eigenvalues, Q = self.calibration.principal_components(C, getattr(torch, options.pca_dtype))
        k = self.widths[boundary]
        if k is None:
            k = width_keeping(eigenvalues, options.discard, options.multiple)
        if boundary in self.kept:
            Q = torch.eye(k, dtype=C.dtype, device=C.device)
        else:
            Q = choose_basis(Q, k, C, options.basis, options.orientation, self.generator)
        self.report.add_boundary(k, eigenvalues, discarded_share(C, Q, k))
        return Q, k
