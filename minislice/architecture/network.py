"""A transformers model seen as Algorithm 1: the same modules, in the order in which the signal meets them.

A saved model takes this file with it, as it does `blocks`; it needs torch and transformers alone.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .blocks import Block, BlockLayer, RMSNorm, TiedHead
from .families import Family, find_family


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
        """Put the block layers where transformers' layers are; the model computes what it did.

        It is none of transformers' own from here on, so `save_pretrained` writes a `SlicedForCausalLM`.
        """
        from .modeling import SavesSliced  # which imports this file

        for index, layer in enumerate(self.layers):
            self.decoder.layers[index] = layer
        self.model.save_pretrained = SavesSliced(self.model)

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


def network(model: PreTrainedModel) -> Network:
    """The model as Algorithm 1: a view that changes nothing (see `Network.install`).

    Raises:
        ValueError: not a causal language model of a supported family, or its linears aren't plain `nn.Linear`s.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"expected a transformers causal language model, got {type(model).__name__}")
    if config.model_type == "minislice":
        return network(model.base)
    family = find_family(config)
    if not isinstance(getattr(model, family.head, None), (nn.Linear, TiedHead)):
        raise ValueError(f"{type(model).__name__} has no language-model head; load the model with AutoModelForCausalLM")
    decoder = model.get_submodule(family.decoder)
    return Network(
        model=model,
        decoder=decoder,
        layers=[
            layer if isinstance(layer, BlockLayer) else _block_layer(layer, family, config) for layer in decoder.layers
        ],
        embeddings=[decoder.get_submodule(name) for name in family.embeddings],
        final_norm_name=family.final_norm,
        head_name=family.head,
    )


def _block_layer(layer: nn.Module, family: Family, config: PreTrainedConfig) -> BlockLayer:
    blocks = []
    for spec in family.blocks:
        mlp = OrderedDict((name, layer.get_submodule(name)) for name in spec.mlp)
        block = Block(
            norm=layer.get_submodule(spec.norm),
            attention=layer.get_submodule(spec.attention) if spec.attention else None,
            mlp=nn.Sequential(mlp) if len(mlp) > 1 else next(iter(mlp.values()), None),
            w_in=[_plain_linear(layer, name) for name in spec.w_in],
            w_out=[_plain_linear(layer, name) for name in spec.w_out],
            dropout=getattr(config, family.dropout) if family.dropout else 0.0,
        )
        blocks.append(block.train(layer.training))
    return BlockLayer(blocks).train(layer.training)


def _plain_linear(layer: nn.Module, name: str) -> nn.Linear:
    linear = layer.get_submodule(name)
    if type(linear) is not nn.Linear or not linear.weight.is_floating_point():
        raise ValueError(
            f"{name} is a {type(linear).__module__}.{type(linear).__name__}, not an nn.Linear of floating-point "
            "weights; load the model without quantization, and merge PEFT adapters into it first"
        )
    return linear


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
