"""Beyond the paper: the pass of `minislice.slicing` with more to do at each block, as `SlicingOptions` asks for."""

from transformers import PreTrainedModel

from .. import slicing
from ..architecture.blocks import Block, BlockLayer
from ..architecture.network import Network
from ..calibration import Calibration, Signal
from ..corpus.batches import Tokens
from ..report import SlicingReport
from .fisher import fisher_metrics
from .inner import Walk
from .neurons import solve_block


class BeyondSlicer(slicing.Slicer):
    """`Slicer`, with the options that the paper doesn't have.

    To repair, it walks the dense network beside the sliced one; `dense` is the signal there.
    """

    def __init__(self, net: Network, calibration: Calibration, widths: list[int | None], report: SlicingReport):
        self.dropped = net.numbered(report.options.drop)
        super().__init__(net, calibration, widths, report)
        mlps = [block for block in self.blocks if block.neurons]
        report.neurons = self.options.neurons_of([block.neurons for block in mlps])
        self.delete = {block: block.neurons - left for block, left in zip(mlps, report.neurons, strict=True)}
        self.dense: Signal | None = None
        self.metrics = {}  # of each block with neurons, if `fisher` is asked for

    @property
    def blocks(self) -> list[Block]:
        """All blocks but the dropped ones."""
        return [block for block in self.net.blocks if block not in self.dropped]

    def slice_embeddings(self) -> None:
        """The network is still dense here."""
        if self.options.fisher:
            self.metrics = fisher_metrics(self.net, self.calibration)
        if self.options.repair:
            self.dense = self.calibration.embed(self.net)
        super().slice_embeddings()

    def slice_layer(self, layer: BlockLayer) -> None:
        super().slice_layer(layer)
        layer.drop(self.dropped)

    def slice_block(self, block: Block) -> None:
        """The dense signal passes every block; the sliced one passes those that aren't dropped."""
        if self.options.repair:
            self.dense = self.calibration.forward(block, self.dense)
        if block not in self.dropped:
            super().slice_block(block)

    def solve(self, block: Block) -> None:
        """Delete neurons, repair, reconstruct."""
        walk, delete = Walk(self.calibration, self.Z, self.P, self.dense), self.delete.get(block, 0)
        solve_block(walk, block, delete, self.options.reconstruct, self.metrics.get(block))


def slice_model(model: PreTrainedModel, tokens: Tokens, attention_mask=None, **keywords) -> PreTrainedModel:
    """Slice a model in place: `minislice.slicing.slice_model` with the options that the paper doesn't have.

        minislice.slice_model(model, tokens, slicing=0.25)

    `keywords` are `batch_size`, `progress` and `calibration` as there, and the fields of `SlicingOptions`.
    """
    return slicing.slice_model(model, tokens, attention_mask, slicer=BeyondSlicer, **keywords)
