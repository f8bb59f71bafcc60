"""The neurons of a block's MLP: what makes them, and what reads them.

A saved model takes this file with it, as it does `blocks`.
"""

from dataclasses import dataclass

from torch import Tensor, cat

from .linears import Linear, is_experts, set_weight


@dataclass(frozen=True)
class MLPLinears:
    """What makes the neurons of an MLP, and what reads them.

    A gated MLP has two linears that make them, or one with both their matrices, one below the other.
    """

    readers: list[Linear]
    writer: Linear
    first: int  # where the neurons are among all that the block's writers read, one after the other

    @property
    def neurons(self) -> int:
        return self.writer.in_features


class HasMLP:
    """A block, for it is one, seen from its MLP."""

    @property
    def is_mixture(self) -> bool:
        """Whether experts are among what writes."""
        return any(is_experts(self.get_submodule(name)) for name in self._w_out)

    @property
    def mlp_linears(self) -> MLPLinears | None:
        """Those of the MLP, if the block has one that is no mixture."""
        first = 0
        for name, w_out in ({} if self.is_mixture else self.writers).items():
            if name.startswith("mlp."):
                makers = [w_in for reader_name, w_in in self.readers.items() if reader_name.startswith("mlp.")]
                return MLPLinears(makers, w_out, first)
            first += w_out.in_features
        return None

    @property
    def neurons(self) -> int:
        """How many its MLP has; 0 without one."""
        return mlp.neurons if (mlp := self.mlp_linears) else 0


def keep_neurons(mlp: MLPLinears, kept: Tensor) -> None:
    """Delete all neurons but those with these numbers, in place."""
    count = mlp.neurons
    for linear in mlp.readers:
        rows = cat([kept + start for start in range(0, linear.out_features, count)])
        set_weight(linear, linear.weight[rows], None if linear.bias is None else linear.bias[rows])
    set_weight(mlp.writer, mlp.writer.weight[:, kept])
