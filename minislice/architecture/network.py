"""A transformers model seen as Algorithm 1: the same modules, in the order in which the signal meets them."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .blocks import Block, BlockLayer, RMSNorm
from .families import find_family
from .family import Family
from .heads import SharingHead, ZeroColumns
from .linears import Linear, check_linear, is_experts, reader, writer
from .mixtures import ANY_WIDTH, allow_any_width
from .running import DecoderForward, LastLayerReached, Recorder

OUTPUTS = ("output_hidden_states", "_output_attentions", "output_router_logits")  # as a config stores what it asks for


@dataclass
class Network:
    """A view of a model: making one changes nothing. `install` has the model run its blocks."""

    model: nn.Module
    decoder: nn.Module  # transformers' module that holds the layers and the final norm
    layers: list[BlockLayer]  # not in the decoder until `install`
    embeddings: list[nn.Embedding]  # their outputs are summed
    family: Family

    @property
    def blocks(self) -> list[Block]:
        return [block for layer in self.layers for block in layer.blocks]

    @property
    def blocks_per_layer(self) -> int:
        """The number of blocks in a layer of the trained model."""
        return len(self.family.blocks_of(self.model.config, 0))

    @property
    def dropped(self) -> list[int]:
        """The numbers of the blocks that are left out; the trained model's blocks are counted from 0."""
        return sorted({*range(self.blocks_per_layer * len(self.layers))} - {block.number for block in self.blocks})

    def drop(self, numbers: Collection[int]) -> None:
        """Leave blocks out, in place, by their numbers; see `numbered`."""
        blocks = self.numbered(numbers)
        for layer in self.layers:
            layer.drop(blocks)

    def numbered(self, numbers: Collection[int]) -> list[Block]:
        """The blocks with these numbers; a ValueError if one can't be dropped."""
        blocks, dropped = {block.number: block for block in self.blocks}, self.dropped
        for number in numbers:
            if number not in blocks:
                known = f"0 to {len(blocks) + len(dropped) - 1}{f' without {dropped}' if dropped else ''}"
                raise ValueError(f"there is no block {number} to drop; this model's are {known}")
            if number in self.needed_by_cache:
                raise ValueError(f"block {number} can't be dropped: transformers asks its cache how long the text is")
        return [blocks[number] for number in numbers]

    @property
    def needed_by_cache(self) -> set[int]:
        """The blocks that must stay, by number: transformers asks the first attention of each layer type for the length
        of its cache.
        """
        kinds = getattr(self.model.config, "layer_types", None) or [None] * len(self.layers)
        first = {kinds.index(kind) for kind in kinds}
        return {block.number for block in self.blocks if block.attention is not None and block.layer in first}

    def install(self) -> None:
        """Put the block layers in the place of transformers' layers; the model computes the same as before.

        No other model may share the config. The caller also gives the model `modeling.SavesSliced`, because
        transformers' own `save_pretrained` can't describe blocks.
        """
        for index, layer in enumerate(self.layers):
            self.their_layers[index] = layer
            for block in layer.blocks:
                if block.is_mixture:
                    allow_any_width(block, self.trained_width)
        self.model.set_experts_implementation(ANY_WIDTH)
        if name := self.family.last_shaped_as:
            getattr(self.decoder, name).register_forward_hook(ZeroColumns(self.model))
        self.decoder.forward = DecoderForward(self.model)

    @property
    def their_layers(self) -> nn.ModuleList:
        """The model's list of layers: transformers' own ones until `install`."""
        return getattr(self.decoder, self.family.layers)

    @property
    def embedding_norm(self) -> nn.Module | None:
        """The norm of the token embedding, where there is one that isn't fused."""
        norm = getattr(self.decoder, self.family.embedding_norm) if self.family.embedding_norm else None
        return None if isinstance(norm, nn.Identity) else norm

    @property
    def final_norm(self) -> nn.Module:
        return getattr(self.decoder, self.family.final_norm)

    @final_norm.setter
    def final_norm(self, norm: nn.Module) -> None:
        setattr(self.decoder, self.family.final_norm, norm)
        if self.family.last_shaped_as:
            norm.register_forward_hook(ZeroColumns(self.model))

    @property
    def head(self) -> nn.Linear | SharingHead:
        return getattr(self.model, self.family.head)

    @head.setter
    def head(self, head: nn.Linear | SharingHead) -> None:
        setattr(self.model, self.family.head, head)

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
    def subtracts_mean(self) -> bool:
        """Whether the trained model's norms are LayerNorms, so that its fused signal has mean zero."""
        return self.family.norm.subtracts_mean

    @property
    def trained_width(self) -> int:  # D
        return self.model.config.hidden_size

    @property
    def is_fused(self) -> bool:
        return isinstance(self.final_norm, RMSNorm)

    @property
    def has_experts(self) -> bool:
        return any(is_experts(module) for module in self.model.modules())

    @property
    def has_adapters(self) -> bool:
        return any(block.adapter is not None for block in self.blocks)

    @property
    def is_sliced(self) -> bool:
        return set(self.widths) != {self.trained_width}

    def embed(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[dict]]:
        """The signal at boundary 0, and the context (mask, RoPE ...) that transformers would give to each layer.

        Contexts may differ: sliding attention has another mask than full attention, and sometimes another RoPE.
        `ids` and the bool `mask` (False where padded) are [sequences, tokens].
        """
        contexts, count = [], len(self.layers)
        pairs = zip(self.layers, self.their_layers, strict=True)
        with self._stand_in([Recorder(layer, theirs, contexts, count) for layer, theirs in pairs]):
            try:
                self.model(input_ids=ids, attention_mask=None if mask is None else mask.long(), use_cache=False)
            except LastLayerReached as reached:
                return reached.args[0][..., : self.widths[0]], contexts
        raise RuntimeError("the model never called its last layer")

    def logits(self, boundary: int, x: Tensor, contexts: list[dict], ids: Tensor) -> Tensor:
        """The logits, [sequences, tokens, vocabulary], for a signal x at a boundary; `contexts` are from `embed`.

        The blocks after it run, then the model without its layers, and its final norm reads what they made of x.
        """
        for block in self.blocks[boundary:]:
            x = block(x, **contexts[block.layer])
        with self._stand_in([]), self.final_norm.register_forward_pre_hook(lambda module, args: (x,)):
            return self.model(input_ids=ids, use_cache=False).logits

    @contextmanager
    def _stand_in(self, layers: list[nn.Module]) -> Iterator[None]:
        """The model runs these in place of its layers, and is asked for logits alone, whatever its config says:
        transformers would look for the layers' outputs here, find none, and never look again.
        """
        theirs, fields = self.their_layers, vars(self.model.config)
        asked = {name: fields[name] for name in OUTPUTS if name in fields}
        setattr(self.decoder, self.family.layers, nn.ModuleList(layers))
        fields.update(dict.fromkeys(asked, False))
        try:
            yield
        finally:
            setattr(self.decoder, self.family.layers, theirs)
            fields.update(asked)


def network(model: PreTrainedModel) -> Network:
    """The model as Algorithm 1: a view that changes nothing (see `Network.install`).

    Raises:
        ValueError: not a causal language model of a supported family, or a linear is quantized, PEFT's,
            or of an unknown class; or the model is half changed.
    """
    if type(model).__module__.startswith("peft."):
        raise ValueError("this is a PEFT model; merge its adapters into it first: model = model.merge_and_unload()")
    if not isinstance(model, PreTrainedModel):
        remedy = "if a model is inside, as after torch.compile, give that one"
        raise ValueError(f"expected a transformers causal language model, got {type(model).__name__}; {remedy}")
    if getattr(model, "is_half_changed", False):
        raise ValueError("an error or an interrupt left this model half changed: load it again")
    config = model.config
    if config.model_type == "minislice":
        return network(model.base)
    family = find_family(config)
    if not isinstance(getattr(model, family.head, None), (nn.Linear, SharingHead)):
        raise ValueError(f"{type(model).__name__} has no language-model head; load the model with AutoModelForCausalLM")
    decoder = _module(model, family.decoder, config)
    for name in filter(None, (family.layers, family.final_norm, family.embedding_norm)):
        _module(decoder, name, config)
    embeddings = [_module(decoder, name, config) for name in family.embeddings]
    layers = [
        layer if isinstance(layer, BlockLayer) else _block_layer(layer, index, family, config)
        for index, layer in enumerate(getattr(decoder, family.layers))
    ]
    return Network(model, decoder, layers, embeddings, family)


def _block_layer(layer: nn.Module, index: int, family: Family, config: PreTrainedConfig) -> BlockLayer:
    blocks, described, specs = [], set(), family.blocks_of(config, index)
    for place, spec in enumerate(specs):
        names = filter(None, (spec.norm, spec.mlp_norm, spec.attention, *spec.mlp))
        modules = {name: _module(layer, name, config) for name in names}
        described.update(parameter for module in modules.values() for parameter in module.parameters())
        mlp = OrderedDict((name, modules[name]) for name in spec.mlp)
        block = Block(
            norm=modules[spec.norm],
            attention=modules.get(spec.attention),
            mlp=nn.Sequential(mlp) if len(mlp) > 1 else next(iter(mlp.values()), None),
            w_in=[_linear(layer, name, config, reader) for name in spec.w_in],
            w_out=[_linear(layer, name, config, writer) for name in spec.w_out],
            mlp_norm=modules.get(spec.mlp_norm),
            scale=getattr(config, family.branch_scale) if family.branch_scale else 1.0,
            residual=spec.residual,
            dropout=getattr(config, family.dropout) if family.dropout else 0.0,
            layer=index,
            number=index * len(specs) + place,
        )
        blocks.append(block.train(layer.training))
    if missing := [name for name, parameter in layer.named_parameters() if parameter not in described]:
        layer = f"a layer of this {config.model_type!r} model"
        raise ValueError(f"{layer} has {missing[0]}, which its entry in `minislice.families` leaves out")
    arguments = list(inspect.signature(layer.forward).parameters)
    made = BlockLayer(blocks, arguments, family.returns_tuple, family.last_shaped_as is not None).train(layer.training)
    # As the caller has set it: whether gradient checkpointing is on, and with which function.
    vars(made).update({name: value for name, value in vars(layer).items() if "gradient_checkpointing" in name})
    return made


def _module(parent: nn.Module, name: str, config: PreTrainedConfig) -> nn.Module:
    try:
        return parent.get_submodule(name)
    except AttributeError:
        has = ", ".join(child for child, _ in parent.named_children())
        entry = f"the entry of {config.model_type!r} (see `minislice.families`) names {name}"
        raise ValueError(f"{entry}, and {type(parent).__name__} has no such module; it has {has}") from None


def _linear(layer: nn.Module, name: str, config: PreTrainedConfig, side: Callable[[nn.Module], Linear]) -> nn.Module:
    """A linear of the layer, checked: as `side`, a reader or a writer, it has the signal's width."""
    module = _module(layer, name, config)
    check_linear(name, module, layer)
    does, width = ("reads", "in_features") if side is reader else ("writes", "out_features")
    if (size := getattr(side(module), width)) != config.hidden_size:
        entry = f"the entry of {config.model_type!r} says that {name} {does} the signal"
        raise ValueError(f"{entry}, which is {config.hidden_size} wide, but its {width} are {size}")
    return module


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, experts of any width; afterwards the model is in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    configs = [module.config for module in model.modules() if is_experts(module)]
    grouped = [config for config in configs if config._experts_implementation == "grouped_mm"]
    for config in grouped:
        config._experts_implementation = ANY_WIDTH
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for config in grouped:
            config._experts_implementation = "grouped_mm"
