"""Depth removal, a baseline: whole layers deleted, one after the other, each time the one whose absence hurts least.

A layer adds to the signal, so a network goes on without it: X <- X. With f_1 ... f_L the layers that are left, and loss
the negative log-likelihood of a predicted token of the calibration set,

    hurt_l = loss(f_L ... f_{l+1} f_{l-1} ... f_1),      delete the l that hurts least, and measure again

as SLEB does (Song et al., ICML 2024). ShortGPT's block influence (Men et al., 2024), the mean of 1 - cos(x_l, x_{l+1})
over tokens, takes one forward pass in all, but doesn't know what the later layers make of the change: on seven small
trained models the layers that it deletes cost as much or more in every case, for one of babyllama's five layers a
perplexity of 24.7 in place of 5.5. Nor do losses measured once do as well (notebooks/measure/depth_rulers.py).
"""

import math
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.configuration import shorten
from ..architecture.network import Network, inference, network
from ..checks import are_ints, require, require_int, require_number
from ..corpus.batches import Batch, Tokens, token_batches
from ..perplexity import logits_behind, prediction_losses


def losses_without_each(net: Network, batches: Sequence[Batch]) -> list[float]:
    """hurt_l: the mean loss without layer l, in nats a predicted token, for every l.

    The signal in front of layer l is the same for every later one that may be left out, so it is computed once: the
    network runs from l + 1 on, half of its layers on average.
    """
    losses = [[] for _ in net.layers]
    with inference(net.model):
        for batch in batches:
            x, contexts = net.embed(batch.ids, batch.mask)
            for index, layer in enumerate(net.layers):
                behind = (index + 1) * net.blocks_per_layer
                logits = logits_behind(net, behind, x, contexts, batch)  # of f_L ... f_{l+1}
                losses[index].append(prediction_losses(logits, batch).double())
                for block in layer.blocks:
                    x = block(x, **contexts[index])
    return [torch.cat(own).mean().item() for own in losses]


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
    """Delete layers of a trained model in place; it is one of its own class still, with fewer.

    Args:
        tokens, attention_mask: the calibration set, as in `slicing.slice_model`. Each deletion takes half a forward
            pass over it for every layer there is.
        layers: how many to delete; or
        size: as many as leave at most this fraction of the parameters, 0 < size <= 1.
        known: the first to delete, not measured again: ``deleted_layers`` of the same model and tokens at another size.
        batch_size: sequences a forward pass.
        progress: show a progress bar.

    Returns the same model object; ``model.deleted_layers`` says which, by their numbers in the trained model, in the
    order in which they were deleted.

    Raises:
        ValueError: nothing would be left, or the size can't be reached; a model that is sliced, or whose layers can't
            change their places; known layers that it hasn't; tokens that don't fit. The model is then as it was.
    """
    net = network(model)
    require(are_ints(known), "known", "a list of numbers of layers", known)
    count = _how_many(net, layers, size)
    batches = token_batches(model, tokens, attention_mask, batch_size)
    numbers, deleted = list(range(len(net.layers))), []
    if len({*known} & {*numbers}) < len(known):
        raise ValueError(f"known layers are numbers from 0 to {numbers[-1]}, each once, got {list(known)}")
    for step in tqdm(range(count), desc="deleting layers", disable=not progress, leave=False):
        least = numbers.index(known[step]) if step < len(known) else _least_harmful(net, batches)
        deleted.append(numbers.pop(least))
        delete_layer(net, least)
        net = network(model)
    model.deleted_layers = deleted
    return model


def _least_harmful(net: Network, batches: Sequence[Batch]) -> int:
    """The place of the layer whose absence hurts least.

    Raises:
        ValueError: there is no saying.
    """
    hurt = [math.inf if math.isnan(loss) else loss for loss in losses_without_each(net, batches)]
    if min(hurt) == math.inf:
        raise ValueError("the loss isn't a number, whichever layer is left out; check the weights")
    return hurt.index(min(hurt))


def delete_layer(net: Network, index: int) -> None:
    """Delete one layer; the config, and the numbers under which layers find their cache, follow."""
    shorten(net.model.config, index)
    del net.their_layers[index]
    for number, layer in enumerate(net.their_layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number


def _how_many(net: Network, layers: int | None, size: float | None) -> int:
    """How many layers to delete.

    Raises:
        ValueError: see `delete_layers`.
    """
    if net.is_fused:
        raise ValueError("layers are deleted from a trained model; delete first, and slice what is left")
    if getattr(net.model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ValueError(
            "this model divides its attention by the layer's number, so that no layer can change its place"
        )
    if len({str([(name, tuple(p.shape)) for name, p in layer.named_parameters()]) for layer in net.their_layers}) > 1:
        raise ValueError("this model's layers differ in shape by their number, so that no layer can change its place")
    if (layers is None) == (size is None):
        raise ValueError("give one of layers and size")
    have = len(net.layers)
    if size is not None:
        require_number("size", size, above=0, most=1)
        total = sum(p.numel() for p in net.model.parameters())
        each = sum(p.numel() for p in net.their_layers[0].parameters())
        layers = -((int(size * total + 1e-6) - total) // each)  # rounded up
        if layers >= have:
            raise ValueError(
                f"{size:.0%} of {total:,} parameters can't be reached: {have} layers of {each:,} can't all be deleted"
            )
    require_int("layers", layers, 0, have - 1)
    return layers
