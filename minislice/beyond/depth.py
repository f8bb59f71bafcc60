"""Depth removal, to compare with: delete whole layers one by one, each time the layer whose absence hurts least.

A layer adds to the signal, so the network runs without it: X <- X. With f_1 ... f_L the layers that are left, and the
loss the negative log-likelihood of a token of the calibration set,

    hurt_l = loss(f_L ... f_{l+1} f_{l-1} ... f_1),      delete the l that hurts least, and measure again

as SLEB does (Song et al., ICML 2024). ShortGPT's block influence (Men et al., 2024), the mean of 1 - cos(x_l, x_{l+1})
over tokens, takes one forward pass in all, but ignores what later layers make of the change. On seven small trained
models its choice costs as much or more in every case, and so do losses measured once (data/results/README.md).
"""

import math
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.configuration import own_config, shorten
from ..architecture.network import Network, inference, network
from ..checks import are_ints, require, require_int, require_number
from ..corpus.batches import Batch, Tokens, token_batches
from ..likelihood import prediction_losses
from ..measuring.cost import parameters


def losses_without_each(net: Network, batches: Sequence[Batch]) -> list[float]:
    """hurt_l: the mean loss without layer l, in nats a predicted token, for every l.

    The signal before layer l is computed once; then the network runs from l + 1 on, half of its layers on average.
    """
    losses = [[] for _ in net.layers]
    with inference(net.model):
        for batch in batches:
            x, contexts = net.embed(batch.ids, batch.mask)
            for index, layer in enumerate(net.layers):
                after = (index + 1) * net.blocks_per_layer
                logits = net.logits(after, x, contexts, batch.ids)  # of f_L ... f_{l+1}
                losses[index].append(prediction_losses(logits, batch).double())
                for block in layer.blocks:
                    x = block(x, **contexts[index])
    return [torch.cat(of_layer).mean().item() for of_layer in losses]


def delete_layers(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    layers: int | None = None,
    size: float | None = None,
    known: Sequence[int] = (),
    batch_size: int = 8,
    progress: bool = False,
) -> PreTrainedModel:
    """Delete layers of a trained model in place; it keeps its class.

    Args:
        tokens, attention_mask: the calibration set.
        layers: how many to delete. Give this or `size`.
        size: delete until at most this fraction of the parameters is left, 0 < size <= 1.
        known: layers to delete first, without measuring: ``deleted_layers`` of the same model and tokens.

    Returns the same model; ``model.deleted_layers`` has the layers' numbers in the trained model, first deleted first.

    Raises:
        ValueError: the size can't be reached, or layers can't change places. The model is then unchanged.
    """
    net = network(model)
    require(are_ints(known), "known", "a list of numbers of layers", known)
    if net.is_fused:
        raise ValueError("layers are deleted from a trained model; delete first, and slice what is left")
    if getattr(net.model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError("this model divides its attention by the layer's number, so no layer can change its place")
    if len({str([(name, tuple(p.shape)) for name, p in layer.named_parameters()]) for layer in net.their_layers}) > 1:
        raise ValueError("this model's layers differ in shape by their number, so no layer can change its place")
    if (layers is None) == (size is None):
        raise ValueError("give one of layers and size")
    have = len(net.layers)
    if size is not None:
        require_number("size", size, above=0, most=1)
        total, each = parameters(net.model), parameters(net.their_layers[0])
        layers = -((int(size * total + 1e-6) - total) // each)  # rounded up
        if layers >= have:
            raise ValueError(
                f"{size:.0%} of {total:,} parameters can't be reached: {have} layers of {each:,} can't all be deleted"
            )
    count = require_int("layers", layers, 0, have - 1)
    batches = token_batches(model, tokens, attention_mask, batch_size)
    numbers, deleted = list(range(have)), []
    if len({*known} & {*numbers}) < len(known):
        raise ValueError(f"known layers are numbers from 0 to {numbers[-1]}, each once, got {list(known)}")
    for step in tqdm(range(count), desc="deleting layers", disable=not progress, leave=False):
        if step < len(known):
            least = numbers.index(known[step])
        else:
            hurt = [math.inf if math.isnan(loss) else loss for loss in losses_without_each(net, batches)]
            if min(hurt) == math.inf:
                raise ValueError("the loss isn't a number, whichever layer is left out; check the weights")
            least = hurt.index(min(hurt))
        deleted.append(numbers.pop(least))
        delete_layer(net, least)
        net = network(model)
    model.deleted_layers = deleted
    return model


def delete_layer(net: Network, index: int) -> None:
    """Delete one layer; the config, and the numbers under which layers find their cache, follow."""
    shorten(own_config(net.model), index)
    del net.their_layers[index]
    for number, layer in enumerate(net.their_layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
