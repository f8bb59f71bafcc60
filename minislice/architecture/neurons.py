"""The neurons of a block's MLP, or of each expert of a mixture: what makes them, and what reads them."""

from dataclasses import dataclass

from torch import Tensor, cat, nn, stack

from .linears import ExpertsReader, ExpertsWriter, Linear, is_experts, set_linear, set_weight


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
    def experts(self) -> nn.Module | None:
        """All experts, if the block is a mixture."""
        return next((module for module in map(self.get_submodule, self._w_out) if is_experts(module)), None)

    @property
    def is_mixture(self) -> bool:
        """Whether experts are among what writes."""
        return self.experts is not None

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
    def has_neurons(self) -> bool:
        """Whether it has an MLP or experts, though they may have lost all of their neurons."""
        return self.is_mixture or self.mlp_linears is not None

    @property
    def neurons(self) -> int:
        """How many its MLP has, or each of its experts but one that all tokens share; 0 without."""
        if self.is_mixture:
            return ExpertsWriter(self.experts).matrices().shape[2]
        return mlp.neurons if (mlp := self.mlp_linears) else 0


def keep_neurons(mlp: MLPLinears, kept: Tensor) -> None:
    """Delete all neurons but those with these numbers, in place."""
    count = mlp.neurons
    for linear in mlp.readers:
        rows = cat([kept + start for start in range(0, linear.out_features, count)])
        set_linear(linear, linear.weight[rows], None if linear.bias is None else linear.bias[rows])
    set_weight(mlp.writer, mlp.writer.weight[:, kept])


def keep_experts_neurons(experts: nn.Module, kept: Tensor) -> None:
    """Delete of each expert all neurons but those with these numbers, [experts, left], in place."""
    reader, writer = ExpertsReader(experts), ExpertsWriter(experts)
    made, read = reader.matrices(), writer.matrices()
    count = read.shape[2]
    each = range(made.shape[1] // count)  # rows that make a neuron: two where there is a gate
    if experts.is_concatenated:
        rows = cat([kept + row * count for row in each], dim=1)
    else:
        rows = stack([kept * len(each) + row for row in each], dim=2).flatten(1)
    reader.store_matrices(made.gather(1, rows[..., None].expand(-1, -1, made.shape[2])))
    if experts.has_bias:
        reader.store(f"{reader.side}_bias", getattr(experts, f"{reader.side}_bias").gather(1, rows))
    writer.store_matrices(read.gather(2, kept[:, None].expand(-1, read.shape[1], -1)))
