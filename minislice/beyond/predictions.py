"""Beyond the paper: a model's predictions, the probabilities of all tokens and not of the text's next one alone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.network import Network
from ..corpus.batches import Batch
from ..likelihood import logits_of_batch, predicting

TOGETHER = 32  # predictions whose divergences are computed together: each has a row as long as the vocabulary


def predictions(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "predicted vocabulary"]:
    """The log-probabilities of all tokens of the vocabulary at every prediction, in float32 or wider."""
    return log_probabilities(logits_of_batch(model, batch), batch)


def log_probabilities(
    logits: Float[Tensor, "sequences tokens vocabulary"], batch: Batch
) -> Float[Tensor, "predicted vocabulary"]:
    """As `predictions`, from logits."""
    return predicting(logits, batch)[0].log_softmax(-1)


def divergences(
    log_p: Float[Tensor, "predicted vocabulary"], logits: Float[Tensor, "predicted vocabulary"]
) -> Float[Tensor, " predicted"]:
    """sum_v p_v (log p_v - log q_v), the Kullback-Leibler divergence of each prediction q from p, in nats.

    Args:
        logits: of q, or its log-probabilities.
    """
    parts = zip(log_p.split(TOGETHER), logits.split(TOGETHER), strict=True)
    apart = [nn.functional.kl_div(q.log_softmax(-1), p, reduction="none", log_target=True).sum(-1) for p, q in parts]
    return torch.cat(apart)


def logits_behind(
    net: Network, boundary: int, x: Float[Tensor, "sequences tokens k"], contexts: list[dict], batch: Batch
) -> Float[Tensor, "sequences tokens vocabulary"]:
    """The logits from the signal x at a boundary: the blocks after it, the final norm and the head.

    Args:
        contexts: of each layer, from `Network.embed`.
    """
    for block in net.blocks[boundary:]:
        x = block(x, **contexts[block.layer])
    return net.logits(x, batch.ids)
