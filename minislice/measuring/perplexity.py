"""What a model is worth: perplexity by the paper's protocol (section 4)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.network import inference
from ..corpus.batches import Batch, Tokens, token_batches


def perplexity(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> float:
    """The exponential of the mean negative log-likelihood over all predicted tokens.

    Each row of `tokens` is a window of its own: its first token is given, the others are predicted. A prediction from
    or of padding does not count.

    Args:
        tokens: ids, [sequences, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: as the tokens; 0 where padded.
        batch_size: sequences a forward pass.

    Returns infinity where it is beyond a float, NaN where the logits aren't numbers.

    Raises:
        ValueError: tokens that don't fit the model, or nothing to predict.
    """
    batches = token_batches(model, tokens, attention_mask, batch_size)
    total, count = 0.0, 0
    with inference(model):
        for batch in tqdm(batches, desc="perplexity", disable=not progress, leave=False):
            mask = None if batch.mask is None else batch.mask.long()
            logits = model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits
            losses = prediction_losses(logits, batch)
            total, count = total + losses.double().sum().item(), count + losses.numel()
    if count == 0:
        raise ValueError("nothing to predict: every sequence has a single token, or is padding")
    try:
        return math.exp(total / count)  # of NaN, NaN
    except OverflowError:
        return math.inf


def prediction_losses(
    logits: Float[Tensor, "sequences tokens vocabulary"], batch: Batch
) -> Float[Tensor, " predicted"]:
    """The negative log-likelihood of each token that is predicted, in nats."""
    logits = logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
        batch.ids[:, 1:].flatten().to(logits.device),
        reduction="none",
    )
    if batch.mask is None:
        return losses
    return losses[(batch.mask[:, :-1] & batch.mask[:, 1:]).flatten().to(losses.device)]
