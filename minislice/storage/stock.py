"""A model sliced to one width, without adapters, is an ordinary model of a smaller hidden size; here it becomes one.

Section 3.4's network, with every boundary k wide and the adapters left out, differs from transformers' own of hidden
size k in one thing: its norm still divides by the trained width D. A norm with weights can do that. With

    eps' = eps D/k    and    weights sqrt(D/k):    x / sqrt(||x||^2/k + eps') sqrt(D/k) = x / sqrt(||x||^2/D + eps)

LLaMA's RMSNorm computes `blocks.RMSNorm`. A LayerNorm (Phi) subtracts the mean first. So the signal is embedded
isometrically in the vectors of mean zero of R^(k+1), x -> x J, where that changes nothing; the hidden size is k + 1.

If nothing was sliced and the head is still tied, the signal is the trained one, whose mean a LayerNorm may subtract.
The head then stays tied, and the final norm gets the head's scale and shift.

Neurons that were deleted, the same number in every MLP, and layers that were left out are in the config.
"""

import copy

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..architecture.configuration import shorten
from ..architecture.families import INNER_NORMS, StockNorm
from ..architecture.heads import FittedHead, TiedHead
from ..architecture.modeling import without_memory
from ..architecture.network import Network, network
from ..rotation import linear_map, rotate_network


def mean_zero_embedding(k: int) -> Float64[Tensor, "k k+1"]:
    """J: orthonormal rows, each of mean zero, so that J J^T = I and x J has mean zero (rows of Helmert's matrix)."""
    row = torch.arange(1, k + 1, dtype=torch.float64)[:, None]
    column = torch.arange(k + 1, dtype=torch.float64)[None]
    J = (column < row).double() - row * (column == row)  # row i: i ones, then -i
    return J / (row * (row + 1)).sqrt()


@torch.no_grad()
def stock_model(model: PreTrainedModel) -> PreTrainedModel:
    """A sliced model as one of transformers' own class, to be saved: its buffers aren't filled in.

    Raises:
        ValueError: no stock architecture computes what the model does; the message says what to slice instead.
    """
    net = network(model)
    stock = stock_network(net)
    D, k, width = net.trained_width, net.widths[0], stock.trained_width
    net = network(copy.deepcopy(net.model))  # its parameters become the stock model's
    if isinstance(head := net.head, FittedHead):  # x -> (x H) E^T + b gets one matrix of its own, H E^T
        net.head = linear_map(head.H.double() @ head.weight.double().T, like=head.H)
        net.head.bias = head.bias
    if net.subtracts_mean and not _is_tied(net):
        rotate_network(net, [mean_zero_embedding(k)] * len(net.norms))
    for module, stock_module in zip([*net.embeddings, *net.blocks], [*stock.embeddings, *stock.blocks], strict=True):
        _fill(stock_module, module.state_dict())
    scale = net.head.weight.new_full((width,), (D / width) ** 0.5)
    for stock_norm in stock.norms:
        _fill_norm(stock_norm, net, scale, None)
    if _is_tied(net):
        _fill_norm(stock.final_norm, net, net.head.alpha, net.head.beta)
    _fill(stock.head, {name: tensor for name, tensor in net.head.state_dict().items() if name in ("weight", "bias")})
    stock.model.tie_weights()  # if its config says so
    if empty := [name for name, parameter in stock.model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"can't export: the stock model has {', '.join(empty[:3])}, the sliced one doesn't")
    return stock.model


def stock_network(net: Network) -> Network:
    """The stock network that a sliced one becomes, without weights, or the ValueError of `stock_model`."""
    norm = net.family.stock_norm
    if isinstance(norm, str):
        raise ValueError(f"a sliced {net.model.config.model_type!r} model can't be exported: {norm}")
    width = _only_width(net) + (net.subtracts_mean and not _is_tied(net))
    _require_whole_layers(net)
    stock = network(without_memory(_stock_config(net, norm, width)))
    for name, module in stock.model.named_modules():
        if hasattr(module, str(net.family.norm.eps)) and module not in stock.norms:
            raise ValueError(
                f"can't export: {name} is a norm inside a branch. {INNER_NORMS[0].upper()}{INNER_NORMS[1:]}"
            )
    _require_same_mlps(net, stock)
    return stock


def _is_tied(net: Network) -> bool:
    return isinstance(net.head, TiedHead)


def _only_width(net: Network) -> int:
    """k, if every boundary is k wide and there are no adapters; else a ValueError."""
    if net.has_adapters or len(set(net.widths)) > 1 or len({norm.eps for norm in net.norms}) > 1:
        state = "residual adapters" if net.has_adapters else "boundaries of different widths"
        if _is_tied(net):
            state = f"a tied head, so that its ends are {net.trained_width} wide"
        raise ValueError(
            f"this model has {state}, and no stock architecture does; slice the dense model with one width, "
            'adapter="none" and slice_head=True (--adapter none --slice-head), so that a tied head gets weights of its '
            "own, then export that"
        )
    return net.widths[0]


def _require_whole_layers(net: Network) -> None:
    count = net.blocks_per_layer
    if partly := [index for index, layer in enumerate(net.layers) if 0 < len(layer.blocks) < count]:
        numbers = [number for number in net.dropped if number // count in partly]
        raise ValueError(
            f"blocks {numbers} are left out without the others of their layers, and a stock layer has all {count}; "
            "leave whole layers out, or none (--drop), then export that"
        )


def _require_same_mlps(net: Network, stock: Network) -> None:
    if [block.is_mixture for block in net.blocks] != [block.is_mixture for block in stock.blocks]:
        raise ValueError(
            "this model's layers are dense or mixtures by their number, which changes where layers are left out; leave "
            "none out (--drop), then export that"
        )
    left, wanted = ([block.neurons for block in part.blocks if block.mlp is not None] for part in (net, stock))
    if left != wanted:
        raise ValueError(
            f"this model's MLPs have {min(left)} to {max(left)} neurons, and {type(stock.model).__name__} would have "
            f"{max(wanted)} in each; slice the dense model with a fraction of neurons to delete, the same for all "
            "(--neurons 0.25), then export that"
        )


def _stock_config(net: Network, norm: StockNorm, width: int) -> PreTrainedConfig:
    """The dense model's config with the new hidden size, layers and neurons; its norm computes the same as before."""
    dense, D = copy.deepcopy(net.model.config), net.trained_width
    dense.tie_word_embeddings = _is_tied(net)
    for index in reversed(range(len(net.layers))):
        if not net.layers[index].blocks:
            shorten(dense, index)
    for of_experts in (False, True):
        inner = max((block.neurons for block in net.blocks if block.is_mixture == of_experts), default=0)
        if inner and (name := net.family.neurons_in(of_experts)):
            setattr(dense, name, inner)
    fields = dense.to_dict()
    fields["head_dim"] = getattr(dense, "head_dim", None) or D // dense.num_attention_heads
    fields |= {"hidden_size": width, norm.eps: net.final_norm.eps * D / width}
    try:
        return AutoConfig.for_model(**fields)
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(
            f"transformers' {type(dense).__name__} refuses a hidden size of {width}; slice to another width than "
            f"{net.widths[0]}. It says: {error}"
        ) from error


def _fill_norm(module: nn.Module, net: Network, scale: Tensor, shift: Tensor | None) -> None:
    """Give a stock norm this scale and shift, as its family stores them."""
    shift = torch.zeros_like(scale) if shift is None else shift
    values = {"weight": scale.detach() - net.family.norm.offset, "bias": shift.detach()}
    _fill(module, {name: values[name].clone() for name in module.state_dict()})


def _fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a stock module these parameters, or raise a ValueError if one doesn't fit."""
    try:
        surplus = module.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:  # another shape
        raise ValueError(f"can't export: {error}") from error
    if surplus:
        raise ValueError(f"can't export: the stock model has no {', '.join(surplus)}")
