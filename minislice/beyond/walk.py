"""Beyond the paper: how far a pass over the blocks has come, and what it wants behind the next one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Float64
from torch import Tensor

from ..architecture.blocks import Block
from ..calibration import Calibration, Signal


@dataclass(frozen=True)
class Walk:
    """A pass that has reached a block, whose W_out has all D columns."""

    calibration: Calibration
    Z: Signal  # before the block, [tokens, k]
    P: Float64[Tensor, "D k"] | None = None  # the basis of Z; without it, Z is in the trained basis
    dense: Signal | None = None  # the dense network's signal behind the block; without it, the block's own is wanted
    chosen: Sequence[int] | None = None  # the numbers of some batches; without it, all
    after: Signal | None = None  # `behind` writes the signal behind the block here

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the batches that the walk goes over."""
        return range(len(self.calibration.batches)) if self.chosen is None else self.chosen

    def behind(self, block: Block, index: int) -> tuple[Float[Tensor, "*tokens D"], Float[Tensor, "*tokens D"]]:
        """The signal of a batch behind the block, and the one that is wanted there, in the trained basis."""
        z = self.Z[index]
        y = block.branch(z, **self.calibration.contexts[index][block.layer])
        y = y + (z if self.P is None else z @ self.P.T.to(z))
        if self.after is not None:
            self.after[index] = y
        return y, y if self.dense is None else self.dense[index]

    def split(self, each: int) -> tuple["Walk", "Walk"]:
        """The walk over the batches to learn from, and the one over those that are held out.

        Every `each`-th batch is held out; with fewer batches the last one, and a single batch isn't.
        """
        held_out = self.numbers[each - 1 :: each] or self.numbers[1:][-1:]
        learned = [number for number in self.numbers if number not in held_out]
        return replace(self, chosen=learned), replace(self, chosen=held_out)
