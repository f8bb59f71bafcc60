"""The picture (Algorithm 1): every supported model is embeddings, then blocks in a row, a final norm and a head.

    X  <-  X S  +  sigma( RMSNorm(X) W_in + b_in ) W_out + b_out          one block

X is the signal, [tokens, D]: row vectors, as in the paper. `nn.Linear` stores its matrix transposed ([out, in]), so
the paper's W_in is ``linear.weight.T``. sigma is transformers' own attention or MLP module, called as it is; what
slicing changes is around it: the norm, the weights, and the residual adapter S.

A saved model takes this file with it, so that it loads where minislice isn't installed; it needs torch and transformers
alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class RMSNorm(nn.Module):
    """x / sqrt(||x||^2 / D + eps): eq. 1's RMSNorm times sqrt(D), with eps where the trained model had it.

    It has no weights (fusion moved them into the linears) and it divides by the width D that the model was *trained*
    at. A sliced signal has fewer columns, but what its norm stands for is still the norm of the whole row.
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

    def extra_repr(self) -> str:
        return f"width={self.A.shape[0]}, rank={self.rank}, padding={self.padding}"


class TiedHead(nn.Module):
    """x -> (x H) E^T + b: a head that shares its matrix E with the embedding, as it did before fusion.

    E is [vocabulary, k], H is [width of the last boundary, k]. Where H comes from: `slicing`.
    """

    def __init__(self, embedding: nn.Embedding, H: Tensor, bias: Tensor | None, requires_grad: bool = True):
        super().__init__()
        self.embedding = embedding
        self.H = nn.Parameter(H.contiguous(), requires_grad=requires_grad)
        self.bias = None if bias is None else nn.Parameter(bias.contiguous(), requires_grad=requires_grad)

    @property
    def in_features(self) -> int:
        return self.H.shape[0]

    def forward(self, x: Tensor) -> Tensor:  # [..., width] -> [..., vocabulary]
        return nn.functional.linear(x @ self.H, self.embedding.weight, self.bias)


class Block(nn.Module):
    """One residual branch: X S + sigma(RMSNorm(X) W_in + b_in) W_out + b_out.

    `attention` and `mlp` are transformers' modules; a parallel layer (Phi) has both in one block, other layers are two
    blocks with one each. `w_in` and `w_out` are the `nn.Linear`s inside them that read and write the signal. `adapter`
    is S, a module; None stands for the identity.
    """

    def __init__(
        self,
        norm: nn.Module,
        attention: nn.Module | None,
        mlp: nn.Module | None,
        w_in: Sequence[nn.Linear],
        w_out: Sequence[nn.Linear],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm, self.attention, self.mlp = norm, attention, mlp
        self.dropout = nn.Dropout(dropout)
        self.adapter: nn.Module | None = None
        # Names, not modules: a second reference would appear a second time in the state dict.
        names = {module: name for name, module in self.named_modules()}
        self._w_in = [names[linear] for linear in w_in]
        self._w_out = [names[linear] for linear in w_out]

    @property
    def w_in(self) -> list[nn.Linear]:
        return [self.get_submodule(name) for name in self._w_in]

    @property
    def w_out(self) -> list[nn.Linear]:
        return [self.get_submodule(name) for name in self._w_out]

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """w_in and w_out, by their names inside the block."""
        return {name: self.get_submodule(name) for name in (*self._w_in, *self._w_out)}

    def branch(self, x: Tensor, **context) -> Tensor:
        """sigma(RMSNorm(X) W_in + b_in) W_out + b_out; `context` is what attention needs besides: mask, RoPE, cache."""
        normalized, outputs = self.norm(x), []
        if self.attention is not None:
            outputs.append(self.dropout(self.attention(hidden_states=normalized, **context)[0]))
        if self.mlp is not None:
            outputs.append(self.dropout(self.mlp(normalized)))
        return sum(outputs[1:], outputs[0])

    def forward(self, x: Tensor, **context) -> Tensor:
        residual = x if self.adapter is None else self.adapter(x)
        return residual + self.branch(x, **context)


class BlockLayer(GradientCheckpointingLayer):
    """Stands where a transformers decoder layer stood, and runs its blocks in turn."""

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, hidden_states: Tensor, **context) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, **context)
        return hidden_states


class _FirstLayerReached(Exception):
    """Ends a forward pass as soon as the signal behind the embeddings is known."""


@dataclass
class Network:
    """A transformers model seen as Algorithm 1: the same modules, in the order in which the signal meets them.

    Boundary l (0 <= l <= len(blocks)) is the signal that enters block l; the last boundary enters the final norm.

    It is a view: making one changes nothing. `install` has the model run its blocks.
    """

    model: nn.Module
    decoder: nn.Module  # transformers' module that holds the layers and the final norm
    layers: list[BlockLayer]  # not in the decoder until `install`
    embeddings: list[nn.Embedding]  # their outputs are summed
    final_norm_name: str  # in the decoder
    head_name: str  # in the model

    @property
    def blocks(self) -> list[Block]:
        return [block for layer in self.layers for block in layer.blocks]

    def install(self) -> None:
        """Put the block layers where transformers' layers are; the model computes what it did."""
        for index, layer in enumerate(self.layers):
            self.decoder.layers[index] = layer

    @property
    def final_norm(self) -> nn.Module:
        return getattr(self.decoder, self.final_norm_name)

    @final_norm.setter
    def final_norm(self, norm: nn.Module) -> None:
        setattr(self.decoder, self.final_norm_name, norm)

    @property
    def head(self) -> nn.Linear | TiedHead:
        return getattr(self.model, self.head_name)

    @head.setter
    def head(self, head: nn.Linear | TiedHead) -> None:
        setattr(self.model, self.head_name, head)

    @property
    def head_was_tied(self) -> bool:
        """Whether the head shares the embedding's matrix, or did before fusion."""
        if self.is_fused:
            return getattr(self.model, "head_was_tied", False)
        return self.head.weight is self.embeddings[0].weight

    @property
    def norms(self) -> list[nn.Module]:
        """The norm that reads each boundary."""
        return [*(block.norm for block in self.blocks), self.final_norm]

    @property
    def widths(self) -> list[int]:
        """The width of the signal at each boundary."""
        return [*(block.w_in[0].in_features for block in self.blocks), self.head.in_features]

    @property
    def trained_width(self) -> int:
        """D."""
        return self.model.config.hidden_size

    @property
    def is_fused(self) -> bool:
        return isinstance(self.final_norm, RMSNorm)

    @property
    def has_adapters(self) -> bool:
        return any(block.adapter is not None for block in self.blocks)

    @property
    def is_sliced(self) -> bool:
        return set(self.widths) != {self.trained_width}

    def embed(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict]:
        """The signal at boundary 0 and the context (mask, RoPE ...) that transformers hands to every layer.

        `ids` and the bool `mask` (False where padded) are [sequences, tokens], the signal [sequences, tokens, k].
        """

        def stop(layer, args, context):
            raise _FirstLayerReached(args[0], context)

        hook = self.decoder.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(input_ids=ids, attention_mask=None if mask is None else mask.long(), use_cache=False)
        except _FirstLayerReached as reached:
            return reached.args
        finally:
            hook.remove()
        raise RuntimeError("the model never called its first layer")


def set_weight(module: nn.Linear | nn.Embedding, weight: Tensor, bias: Tensor | None = None) -> None:
    """Give a module a new matrix, of any shape, in its own dtype; without `bias` it keeps the one it has."""
    old = module.weight
    module.weight = nn.Parameter(weight.to(old.dtype).contiguous(), requires_grad=old.requires_grad)
    if isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    else:
        module.out_features, module.in_features = weight.shape
        if bias is not None:
            module.bias = nn.Parameter(bias.to(old.dtype).contiguous(), requires_grad=old.requires_grad)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; afterwards the model is in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
