"""What a model is worth: perplexity by the paper's protocol (section 4)."""

import math

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.network import inference
from ..corpus.batches import Tokens, token_batches
from ..likelihood import token_losses


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
            losses = token_losses(model, batch)
            total, count = total + losses.double().sum().item(), count + losses.numel()
    if count == 0:
        raise ValueError("nothing to predict: every sequence has a single token, or is padding")
    try:
        return math.exp(total / count)  # of NaN, NaN
    except OverflowError:
        return math.inf
