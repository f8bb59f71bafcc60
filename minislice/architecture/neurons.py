"""The neurons of a block's MLP, or of each expert of a mixture: what makes them, and what reads them."""

from dataclasses import dataclass

from torch import Tensor, cat, nn, stack

from .linears import ExpertsReader, ExpertsWriter, Linear, set_linear, set_weight


@dataclass(frozen=True)
class MLPLinears:
    """The linears that make the neurons of an MLP, and the linear that reads them.

    A gated MLP makes its neurons with two linears, or with one that has both matrices, one below the other.
    """

    readers: list[Linear]
    writer: Linear
    first: int  # the number of the first neuron among all inputs of the block's writers

    @property
    def neurons(self) -> int:
        return self.writer.in_features


def keep_neurons(mlp: MLPLinears, left: Tensor) -> None:
    """Delete all neurons except the ones with these numbers, in place."""
    count = mlp.neurons
    for linear in mlp.readers:
        rows = cat([left + start for start in range(0, linear.out_features, count)])
        set_linear(linear, linear.weight[rows], None if linear.bias is None else linear.bias[rows])
    set_weight(mlp.writer, mlp.writer.weight[:, left])


def keep_experts_neurons(experts: nn.Module, left: Tensor) -> None:
    """Delete all neurons of each expert except the ones with these numbers, [experts, left], in place."""
    reader, writer = ExpertsReader(experts), ExpertsWriter(experts)
    made, read = reader.matrices(), writer.matrices()
    count = read.shape[2]
    parts = made.shape[1] // count  # the rows that make a neuron: two with a gate, else one
    if experts.is_concatenated:
        rows = cat([left + part * count for part in range(parts)], dim=1)
    else:
        rows = stack([left * parts + part for part in range(parts)], dim=2).flatten(1)
    reader.store_matrices(made.gather(1, rows[..., None].expand(-1, -1, made.shape[2])))
    if experts.has_bias:
        reader.store(f"{reader.side}_bias", getattr(experts, f"{reader.side}_bias").gather(1, rows))
    writer.store_matrices(read.gather(2, left[:, None].expand(-1, read.shape[1], -1)))
