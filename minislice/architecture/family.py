"""How `families` describes a model family: where its norms and linears are, and what its norms compute."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class NormKind:
    """What the norms of a family compute: x, with or without its mean, divided by its root mean square, times a scale.

    The scale is the module's `weight` plus `offset`, or 1 without a `weight`; the module's `bias` is the shift.
    """

    subtracts_mean: bool  # a LayerNorm, whatever its class is called
    eps: str | float  # the name of the module's attribute, or a number that is fixed in the code
    offset: float = 0.0  # 1 where the scale is 1 + weight

    def eps_of(self, norm: nn.Module) -> float:
        return getattr(norm, self.eps) if isinstance(self.eps, str) else self.eps

    def scale_of(self, norm: nn.Module) -> Tensor | None:
        weight = getattr(norm, "weight", None)
        return weight if weight is None or not self.offset else weight.double() + self.offset


LAYERNORM = NormKind(subtracts_mean=True, eps="eps")  # torch's
RMSNORM = NormKind(subtracts_mean=False, eps="variance_epsilon")  # of LLaMA and most later families


@dataclass(frozen=True)
class BlockSpec:
    """One block of a decoder layer; every entry is a module's name inside the transformers layer."""

    norm: str
    w_in: tuple[str, ...]  # every linear that reads the norm's output, also a mixture's router and its experts
    w_out: tuple[str, ...]  # every linear whose output is added to the signal
    attention: str | None = None
    mlp: tuple[str, ...] = ()  # one module, or several that are applied in turn
    mlp_norm: str | None = None  # the MLP's own norm, where a parallel layer has two
    residual: str | None = None  # an argument that attention and mlp add to their output


@dataclass(frozen=True)
class StockNorm:
    """What `stock` needs to know about the norm of transformers' own class."""

    eps: str  # the name of the config's field


@dataclass(frozen=True)
class Family:
    """One family of models: an entry of the table."""

    decoder: str  # where the embeddings, the layers and the final norm are
    embeddings: tuple[str, ...]  # inside the decoder: the tables whose rows are summed
    final_norm: str
    blocks: tuple[BlockSpec, ...] | Callable[[PreTrainedConfig, int], tuple[BlockSpec, ...]]  # see `blocks_of`
    norm: NormKind
    stock_norm: StockNorm | str  # a str says why transformers' own class can't hold a sliced model
    layers: str = "layers"  # inside the decoder
    embedding_norm: str | None = None  # inside the decoder: a norm of the token embedding alone
    last_shaped_as: str | None = None  # inside the decoder: a module; the last signal gets the shape of its output
    branch_scale: str | None = None  # the config's field for a number that every branch is multiplied by
    dropout: str | None = None  # the config's field for the dropout on a branch's output
    obstacle: Callable[[PreTrainedConfig], str | None] = lambda config: None  # why this config can't be sliced
    inner_width: str | None = "intermediate_size"  # the config's field for the number of neurons
    expert_width: str | None = None  # the config's field for an expert's neurons, if it is another one
    head: str = "lm_head"
    returns_tuple: bool | None = None  # whether a layer does; None: it does if it takes `output_attentions`

    def neurons_in(self, of_experts: bool) -> str | None:
        """The config's field for the number of neurons of an MLP, or of an expert."""
        return (of_experts and self.expert_width) or self.inner_width

    def blocks_of(self, config: PreTrainedConfig, layer: int) -> tuple[BlockSpec, ...]:
        """The blocks of a layer; all layers have the same number of blocks."""
        return self.blocks(config, layer) if callable(self.blocks) else self.blocks
