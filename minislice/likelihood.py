"""What a model makes of a text: the negative log-likelihood of each token that it predicts."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .corpus.batches import Batch


def token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """-log p of every predicted token, in nats: [predicted], in float32 or wider.

    The first token of a sequence is given. A prediction from or of padding does not count.
    """
    mask = None if batch.mask is None else batch.mask.long()
    logits = model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
        batch.ids[:, 1:].flatten().to(logits.device),
        reduction="none",
    )
    if batch.mask is not None:
        losses = losses[(batch.mask[:, :-1] & batch.mask[:, 1:]).flatten().to(losses.device)]
    return losses
