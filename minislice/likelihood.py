"""What a model is worth: perplexity by the paper's protocol (section 4), and the predictions that it is made of.

A sequence's first token is given, the others are predicted; a prediction from or of padding does not count.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .architecture.network import Network, inference
from .corpus.batches import Batch, Tokens, token_batches


def perplexity(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> float:
    """The exponential of the mean negative log-likelihood over all predicted tokens of all windows, the rows.

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
    try:
        return math.exp(total / count)  # of NaN, NaN
    except OverflowError:
        return math.inf


def token_losses(model: PreTrainedModel, batch: Batch) -> Float[Tensor, " predicted"]:
    """-log p of every predicted token of a batch, in nats, in float32 or wider."""
    return prediction_losses(_logits(model, batch), batch)


def predictions(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "predicted vocabulary"]:
    """The log-probabilities of all tokens of the vocabulary at every prediction, in float32 or wider."""
    return log_probabilities(_logits(model, batch), batch)


def _logits(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "sequences tokens vocabulary"]:
    mask = None if batch.mask is None else batch.mask.long()
    return model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits


def prediction_losses(
    logits: Float[Tensor, "sequences tokens vocabulary"], batch: Batch
) -> Float[Tensor, " predicted"]:
    """As `token_losses`, from logits."""
    following = batch.ids[:, 1:].flatten().to(logits.device)
    losses = nn.functional.cross_entropy(_wide(logits), following, reduction="none")
    return losses if batch.mask is None else losses[_counted(batch.mask).to(losses.device)]


def log_probabilities(
    logits: Float[Tensor, "sequences tokens vocabulary"], batch: Batch
) -> Float[Tensor, "predicted vocabulary"]:
    """As `predictions`, from logits."""
    log_p = _wide(logits).log_softmax(-1)
    return log_p if batch.mask is None else log_p[_counted(batch.mask).to(log_p.device)]


def divergences(
    log_p: Float[Tensor, "predicted vocabulary"], log_q: Float[Tensor, "predicted vocabulary"]
) -> Float[Tensor, " predicted"]:
    """sum_v p_v (log p_v - log q_v), the Kullback-Leibler divergence of each prediction q from p, in nats."""
    return nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _wide(logits: Tensor) -> Tensor:  # [sequences * (tokens - 1), vocabulary]
    """The logits that predict a token of the batch, in float32 or wider."""
    return logits[:, :-1].flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))


def _counted(mask: Tensor) -> Tensor:  # [sequences * (tokens - 1)]
    return (mask[:, :-1] & mask[:, 1:]).flatten()


def logits_behind(
    net: Network, boundary: int, x: Float[Tensor, "sequences tokens k"], contexts: list[dict], batch: Batch
) -> Float[Tensor, "sequences tokens vocabulary"]:
    """The logits from the signal x at a boundary: the blocks after it, the final norm and the head.

    Args:
        contexts: of each layer, from `Network.embed`.
    """
    blocks = [(block, context) for layer, context in zip(net.layers, contexts, strict=True) for block in layer.blocks]
    for block, context in blocks[boundary:]:
        x = block(x, **context)
    return net.logits(x, batch.ids)
