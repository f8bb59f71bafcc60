"""From a `SlicedConfig` to the modules that it describes, and back."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .blocks import Block, LowRankAdapter, RMSNorm
from .configuration import SlicedConfig
from .families import registered_fields
from .heads import CentredEmbedding, FittedHead, TiedHead
from .linears import Linear, set_weight
from .network import Network, network
from .neurons import keep_experts_neurons, keep_neurons


@torch.no_grad()
def build(config: SlicedConfig) -> PreTrainedModel:
    """The dense model of `config.base` with blocks for layers and every matrix cut to size."""
    base = AutoModelForCausalLM.from_config(config.base, dtype=torch.get_default_dtype())
    net = network(base)
    net.install()
    if net.embedding_norm is not None:
        setattr(net.decoder, net.family.embedding_norm, nn.Identity())
    D, widths = net.trained_width, config.widths
    for embedding in net.embeddings:
        set_weight(embedding, embedding.weight[:, : widths[0]].clone())
    net.drop(config.dropped)
    if config.neurons is not None:
        _keep_neurons(net, config.neurons)
    for index, block in enumerate(net.blocks):
        k, k_next = widths[index : index + 2]
        block.norm, block.mlp_norm = RMSNorm(D, config.norm_eps[index]), None
        for linear in block.w_in:
            set_weight(linear, linear.weight[:, :k].clone())
        for linear in block.w_out:
            set_weight(linear, linear.weight[:k_next].clone())
        for name, linear in block.linears.items():
            _set_bias(linear, name in config.biases[block.number % net.blocks_per_layer])
        adapter, weight = config.adapters[index], block.w_out[0].weight
        if adapter == "full":
            block.adapter = nn.Linear(k, k_next, bias=False, device=weight.device, dtype=weight.dtype)
        elif adapter is not None:
            block.adapter = LowRankAdapter(weight.new_zeros(k, adapter), k_next)
    net.final_norm = RMSNorm(D, config.norm_eps[-1])
    set_weight(net.head, net.head.weight[:, : widths[-1]].clone())
    _set_bias(net.head, config.head_bias)
    base.head_was_tied = config.head_was_tied
    weight, bias = net.head.weight, net.head.bias
    if config.head == "fitted":
        net.head = FittedHead(net.embeddings[0], H=weight.new_zeros(widths[-1], widths[0]), bias=bias)
    elif config.head == "tied":
        if net.subtracts_mean:
            net.embeddings[0].__class__ = CentredEmbedding
        beta = weight.new_zeros(D) if config.head_shift else None
        net.head = TiedHead(net.embeddings[0], alpha=weight.new_ones(D), beta=beta, bias=bias)
    return base


def _keep_neurons(net: Network, counts: list[int]) -> None:
    """Leave every MLP, and every expert, so many neurons; a ValueError if they don't fit."""
    mlps = [block for block in net.blocks if block.mlp is not None]
    if len(counts) < len(mlps):  # saved by an older minislice, which deleted no neurons of experts
        mlps = [block for block in mlps if not block.is_mixture]
    dense = [block.neurons for block in mlps]
    if len(counts) != len(mlps) or not all(left <= most for left, most in zip(counts, dense, strict=True)):
        known = f"a list of {len(mlps)} numbers, at most the dense model's, which are {dense}"
        raise ValueError(f"'neurons' must be {known}; got {counts!r}")
    for block, count in zip(mlps, counts, strict=True):
        if block.is_mixture:
            keep_experts_neurons(block.experts, torch.arange(count).expand(block.experts.num_experts, -1))
        else:
            keep_neurons(block.mlp_linears, torch.arange(count))


def _set_bias(linear: Linear, wanted: bool) -> None:
    """Give a linear the bias it should have, of the right length."""
    linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features)) if wanted else None


def description(model: PreTrainedModel) -> dict[str, Any]:
    """What a `SlicedConfig` says of a model, read from the modules it has."""
    net = network(model)
    if not net.is_fused:
        raise ValueError("this model isn't sliced: save it with transformers' own save_pretrained")
    biases: list[list[str] | None] = [None] * net.blocks_per_layer
    for block in net.blocks:
        names = [name for name, linear in block.linears.items() if linear.bias is not None]
        place = block.number % net.blocks_per_layer
        if biases[place] not in (None, names):
            raise ValueError("can't save a model where a linear has a bias in some layers and none in others")
        biases[place] = names
    return {
        "base": model.config,
        "family": registered_fields(model.config),
        "widths": net.widths,
        "adapters": [form_of(block) for block in net.blocks],
        "norm_eps": [norm.eps for norm in net.norms],
        "neurons": [block.neurons for block in net.blocks if block.mlp is not None],
        "dropped": net.dropped,
        "biases": [names or [] for names in biases],
        "head": {TiedHead: "tied", FittedHead: "fitted"}.get(type(net.head), "linear"),
        "head_bias": net.head.bias is not None,
        "head_shift": getattr(net.head, "beta", None) is not None,
        "head_was_tied": net.head_was_tied,
    }


def form_of(block: Block) -> str | int | None:
    """A block's adapter, as `SlicedConfig` says it."""
    if isinstance(block.adapter, LowRankAdapter):
        return block.adapter.rank
    return None if block.adapter is None else "full"
