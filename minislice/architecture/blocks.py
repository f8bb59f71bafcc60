"""The picture (Algorithm 1): every supported model is embeddings, then blocks in a row, a final norm and a head.

    X  <-  X S  +  sigma( RMSNorm(X) W_in + b_in ) W_out + b_out          one block

The paper's algorithm has the norm after the sum; S is section 3.3's. X is the signal, [tokens, D]: row vectors.
`nn.Linear` stores its matrix transposed ([out, in]), so the paper's W_in is ``linear.weight.T``. transformers' own
attention or MLP module holds W_in, sigma and W_out: slicing replaces its weights and keeps its code. It also replaces
the norm, and adds the residual adapter S.

A *boundary* is the place between two blocks, and the signal there: boundary 0 is what the embeddings write and the
first block reads, and the last one, L for L blocks, what the last block writes and the final norm and the head read.
Each boundary has a *width*, the number of its columns: D in a trained model, and k after slicing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .linears import ExpertsWriter, Linear, is_experts, reader, writer
from .neurons import MLPLinears


class RMSNorm(nn.Module):
    """x / sqrt(||x||^2 / D + eps): eq. 1's RMSNorm times sqrt(D), with eps where the trained model had it.

    It has no weights (fusion moved them into the linears), and it divides by the width D of the *trained* model: a
    sliced signal has fewer columns, but stands for the whole row.
    """

    def __init__(self, trained_width: int, eps: float):
        super().__init__()
        self.trained_width, self.eps = trained_width, eps

    def forward(self, x: Tensor) -> Tensor:  # [..., k] -> [..., k]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # squares overflow in float16
        mean_square = wide.square().sum(-1, keepdim=True) / self.trained_width
        return (wide * torch.rsqrt(mean_square + self.eps)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"trained_width={self.trained_width}, eps={self.eps}"


class LowRankAdapter(nn.Module):
    """x -> [x - (x A) A^T, 0 ... 0]: the residual adapter of aligned bases, I - A A^T, padded to the next width.

    A is [k, r]; r = 0 is the identity, or the padding alone. Where it comes from: `adapters`.
    """

    def __init__(self, A: Tensor, width_out: int, requires_grad: bool = True):
        super().__init__()
        if A.shape[1]:
            self.A = nn.Parameter(A.contiguous(), requires_grad=requires_grad)
        else:
            self.register_buffer("A", A.contiguous(), persistent=False)  # empty: nothing to train, nothing to save
        self.padding = width_out - A.shape[0]

    @property
    def rank(self) -> int:
        return self.A.shape[1]

    def forward(self, x: Tensor) -> Tensor:  # [..., k] -> [..., k + padding]
        if self.rank:
            x = x - (x @ self.A) @ self.A.T
        return nn.functional.pad(x, (0, self.padding)) if self.padding else x


class Block(nn.Module):
    """One residual branch: X S + sigma(RMSNorm(X) W_in + b_in) W_out + b_out.

    `attention` and `mlp` are transformers' modules; a parallel layer (Phi) has both in one block, other layers are two
    blocks with one each. `w_in` and `w_out` are the linears inside them that read and write the signal. `adapter` is S,
    a module; None stands for the identity.

    Before fusion a parallel layer may have a second norm for the mlp (`mlp_norm`), and a branch may be multiplied by a
    number (`scale`). `residual` names an argument that both modules add to their output; here they get 0.

    `layer` and `number` are the block's layer and its own number in the trained model, both counted from 0.
    """

    def __init__(
        self,
        norm: nn.Module,
        attention: nn.Module | None,
        mlp: nn.Module | None,
        w_in: Sequence[nn.Module],
        w_out: Sequence[nn.Module],
        mlp_norm: nn.Module | None = None,
        scale: float = 1.0,
        residual: str | None = None,
        dropout: float = 0.0,
        *,
        layer: int,
        number: int,
    ):
        super().__init__()
        self.layer, self.number = layer, number
        self.norm, self.attention, self.mlp, self.mlp_norm = norm, attention, mlp, mlp_norm
        self.scale, self.residual = scale, residual
        self.dropout = dropout
        self.adapter: nn.Module | None = None
        # Names, not modules: a second reference would appear a second time in the state dict.
        names = {module: name for name, module in self.named_modules()}
        self._w_in = [names[linear] for linear in w_in]
        self._w_out = [names[linear] for linear in w_out]

    @property
    def readers(self) -> dict[str, Linear]:
        """w_in, by their names inside the block."""
        return {name: reader(self.get_submodule(name)) for name in self._w_in}

    @property
    def writers(self) -> dict[str, Linear]:
        """w_out, by their names inside the block."""
        return {name: writer(self.get_submodule(name)) for name in self._w_out}

    @property
    def linears(self) -> dict[str, Linear]:
        """w_in and w_out, by their names inside the block; of experts, which read and write, the writing side."""
        return self.readers | self.writers

    @property
    def w_in(self) -> list[Linear]:
        return list(self.readers.values())

    @property
    def w_out(self) -> list[Linear]:
        return list(self.writers.values())

    @property
    def experts(self) -> nn.Module | None:
        """The module with all experts, if the block is a mixture."""
        return next((module for module in map(self.get_submodule, self._w_out) if is_experts(module)), None)

    @property
    def is_mixture(self) -> bool:
        """Whether experts write the block's output."""
        return self.experts is not None

    @property
    def mlp_linears(self) -> MLPLinears | None:
        """The linears of the block's MLP; None without an MLP, and for a mixture."""
        first = 0
        for name, w_out in ({} if self.is_mixture else self.writers).items():
            if name.startswith("mlp."):
                makers = [w_in for reader_name, w_in in self.readers.items() if reader_name.startswith("mlp.")]
                return MLPLinears(makers, w_out, first)
            first += w_out.in_features
        return None

    @property
    def neurons(self) -> int:
        """The number of neurons of the MLP, or of each expert (a shared expert isn't counted); 0 without an MLP."""
        if self.is_mixture:
            return ExpertsWriter(self.experts).matrices().shape[2]
        return mlp.neurons if (mlp := self.mlp_linears) else 0

    def branch(self, x: Tensor, **context) -> Tensor:
        """sigma(RMSNorm(X) W_in + b_in) W_out + b_out; `context` is what attention needs besides: mask, RoPE, cache."""
        normalized, outputs = self.norm(x), []
        nothing = {self.residual: x.new_zeros(())} if self.residual else {}
        if self.attention is not None:
            outputs.append(self.attention(hidden_states=normalized, **nothing, **context))
        if self.mlp is not None:
            outputs.append(self.mlp(normalized if self.mlp_norm is None else self.mlp_norm(x), **nothing))
        # Attention may return its weights as well, and a mixture its router's choice.
        outputs = [output if isinstance(output, Tensor) else output[0] for output in outputs]
        is_training = self.get_submodule(self._w_out[0]).training  # the model's own module; a block may be a view of it
        outputs = [nn.functional.dropout(output, self.dropout, is_training) for output in outputs]
        branch = sum(outputs[1:], outputs[0])
        return branch if self.scale == 1 else branch * self.scale

    def norm_of(self, name: str) -> nn.Module:
        """The norm that a linear of w_in reads, by the linear's name in `readers`."""
        return self.mlp_norm if self.mlp_norm is not None and name.split(".")[0] == "mlp" else self.norm

    def forward(self, x: Tensor, **context) -> Tensor:
        residual = x if self.adapter is None else self.adapter(x)
        return residual + self.branch(x, **context)


class BlockLayer(GradientCheckpointingLayer):
    """Stands in the place of a transformers layer, and runs its blocks in turn.

    It takes the arguments of that layer, whose names are `arguments`, in order, and returns the same kind of result: a
    tuple or the signal alone. `ZeroColumns` may append zeros to the signal before the first layer (`has_zero_columns`).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        arguments: Sequence[str],
        returns_tuple: bool | None = None,
        has_zero_columns: bool = False,
    ):
        super().__init__()
        self.blocks, self.arguments, self.has_zero_columns = nn.ModuleList(blocks), tuple(arguments), has_zero_columns
        self.returns_tuple = "output_attentions" in arguments if returns_tuple is None else returns_tuple

    def forward(self, hidden_states: Tensor, *positional, **context) -> Tensor | tuple[Tensor, None]:
        context = self.context(positional, context)
        for block in self.blocks:
            if self.has_zero_columns:
                hidden_states = hidden_states[..., : block.w_in[0].in_features]
            hidden_states = block(hidden_states, **context)
        return self.result(hidden_states)

    def drop(self, dropped: Sequence[Block]) -> None:
        """Leave blocks out, in place: the signal passes them unchanged."""
        self.blocks = nn.ModuleList(block for block in self.blocks if block not in dropped)

    def context(self, positional: Sequence, named: dict) -> dict:
        """The arguments of a call besides the signal, by name."""
        return {**named, **dict(zip(self.arguments[1:], positional, strict=False))}

    def result(self, hidden_states: Tensor) -> Tensor | tuple[Tensor, None]:
        """The result of a call, as transformers' layer returns it."""
        return (hidden_states, None) if self.returns_tuple else hidden_states
