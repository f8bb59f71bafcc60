"""What a model makes of a text: the negative log-likelihood of each token that it predicts."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from .architecture.network import Network
from .corpus.batches import Batch


def token_losses(model: PreTrainedModel, batch: Batch) -> Float[Tensor, " predicted"]:
    """-log p of every token of a batch that is predicted, in nats, in float32 or wider."""
    mask = None if batch.mask is None else batch.mask.long()
    return prediction_losses(model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits, batch)


def prediction_losses(
    logits: Float[Tensor, "sequences tokens vocabulary"], batch: Batch
) -> Float[Tensor, " predicted"]:
    """The same, of logits.

    The first token of a sequence is given. A prediction from or of padding does not count.
    """
    logits = logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
        batch.ids[:, 1:].flatten().to(logits.device),
        reduction="none",
    )
    if batch.mask is None:
        return losses
    return losses[(batch.mask[:, :-1] & batch.mask[:, 1:]).flatten().to(losses.device)]


def losses_behind(
    net: Network, boundary: int, x: Float[Tensor, "sequences tokens k"], contexts: list[dict], batch: Batch
) -> Float[Tensor, " predicted"]:
    """The same, of the signal x at a boundary: what the blocks behind it, the final norm and the head make of it.

    Args:
        contexts: of each layer, as `Network.embed` has them.
    """
    blocks = [(block, context) for layer, context in zip(net.layers, contexts, strict=True) for block in layer.blocks]
    for block, context in blocks[boundary:]:
        x = block(x, **context)
    return prediction_losses(net.logits(x, batch.ids), batch)
