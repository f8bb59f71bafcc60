"""Perplexity by the paper's protocol (section 4).

A sequence's first token is given, the others are predicted; a prediction from or of padding does not count.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .architecture.network import inference
from .corpus.batches import Batch, Tokens, token_batches


def perplexity(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> float:
    """The exponential of the mean negative log-likelihood over all predicted tokens; each row of `tokens` is a window.

    Args:
        tokens: ids, [sequences, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: as the tokens; 0 where padded.

    Returns infinity if the number is too large for a float, NaN if the logits have one.

    Raises:
        ValueError: tokens that don't fit the model, or nothing to predict.
    """
    batches = token_batches(model, tokens, attention_mask, batch_size)
    total, count = 0.0, 0
    with inference(model):
        for batch in tqdm(batches, desc="perplexity", disable=not progress, leave=False):
            losses = token_losses(model, batch)
            total, count = total + losses.double().sum().item(), count + losses.numel()
    if count == 0:
        raise ValueError("nothing to predict: every sequence has a single token, or is padding")
    return exponential(total / count)


def exponential(number: float) -> float:
    """e^number; infinity where a float can't hold it."""
    try:
        return math.exp(number)
    except OverflowError:
        return math.inf


def token_losses(model: PreTrainedModel, batch: Batch) -> Float[Tensor, " predicted"]:
    """-log p of every predicted token of a batch, in nats, in float32 or wider."""
    return prediction_losses(logits_of_batch(model, batch), batch)


def logits_of_batch(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "sequences tokens vocabulary"]:
    mask = None if batch.mask is None else batch.mask.long()
    return model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits


def prediction_losses(
    logits: Float[Tensor, "sequences tokens vocabulary"], batch: Batch
) -> Float[Tensor, " predicted"]:
    """As `token_losses`, from logits."""
    return nn.functional.cross_entropy(*predicting(logits, batch), reduction="none")


def predicting(
    logits: Float[Tensor, "sequences tokens vocabulary"], batch: Batch
) -> tuple[Float[Tensor, "predicted vocabulary"], Int64[Tensor, " predicted"]]:
    """The logits that predict a token of the batch, in float32 or wider, and these tokens."""
    mask = batch.mask
    counted = slice(None) if mask is None else (mask[:, :-1] & mask[:, 1:]).to(logits.device)
    rows, following = logits[:, :-1][counted], batch.ids[:, 1:].to(logits.device)[counted]
    return rows.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32)), following.flatten()
