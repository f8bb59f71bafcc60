"""Two perplexities compared: their ratio, with a standard error.

Windows of text differ in difficulty far more than models do: one alone may have twice or ten times the perplexity of
the next. So two models are compared on the *same* windows (paired), where that difficulty cancels. Windows of one
document resemble each other, so their differences are summed first (clustered). With nll_j the negative log-likelihood
of document j, summed over the n_j predicted tokens of its windows, N = sum n_j, and m documents:

    d_j = nll_j(model) - nll_j(reference),        ratio of perplexities = exp(d),   d = sum d_j / N
    standard error of d  =  sqrt( m / (m - 1)  sum (d_j - n_j d)^2 ) / N
    standard error of the ratio  =  ratio * standard error of d

It is the standard error of a ratio estimator (Cochran, Sampling Techniques, section 6.4). Where documents aren't known,
every window counts as one. It says nothing about another kind of text, another calibration set or another seed.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers import PreTrainedModel

from ..architecture.network import inference
from ..corpus.batches import Tokens, token_batches
from ..likelihood import exponential, token_losses


@dataclass(frozen=True)
class WindowLosses:
    """What a model makes of each window of a text."""

    nll: Float64[Tensor, " windows"]  # summed over the window's predicted tokens, in nats
    tokens: Int64[Tensor, " windows"]  # predicted, in each
    documents: Int64[Tensor, " windows"] | None = None  # the number of each window's document; None: all differ

    @property
    def perplexity(self) -> float:
        """Of all windows together: what `perplexity` computes."""
        return exponential(self.nll.sum().item() / self.tokens.sum().item())

    @property
    def perplexities(self) -> Float64[Tensor, " windows"]:
        """Of each window alone."""
        return (self.nll / self.tokens).exp()


@dataclass(frozen=True)
class Ratio:
    """A ratio of two perplexities and its standard error, both without unit."""

    ratio: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.ratio:.4f} ± {self.standard_error:.4f}"

    def errors_above(self, value: float = 1.0) -> float:
        """How many standard errors the ratio lies above `value`; within two, noise explains the difference."""
        distance = self.ratio - value
        if distance == 0:
            return 0.0
        return distance / self.standard_error if self.standard_error else math.copysign(math.inf, distance)


def window_losses(
    model: PreTrainedModel, tokens: Tokens, attention_mask=None, documents: Int64[Tensor, " windows"] | None = None
) -> WindowLosses:
    """The negative log-likelihood of each window, by the protocol of `perplexity`.

    Args:
        tokens: ids, [windows, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: as the tokens; a window with nothing to predict is left out.
        documents: the number of each window's document, if windows of one document are to count as related.
    """
    nll, counts, measured = [], [], []
    windows = token_batches(model, tokens, attention_mask, batch_size=1)
    if documents is not None and len(documents) != len(windows):
        raise ValueError(f"got the documents of {len(documents)} windows, but {len(windows)} windows")
    with inference(model):
        for number, window in enumerate(windows):
            if count := window.predictions:
                nll.append(token_losses(model, window).double().sum().item())
                counts.append(count)
                measured.append(number)
    if not counts:
        raise ValueError("nothing to predict: every sequence has a single token, or is padding")
    documents = None if documents is None else torch.as_tensor(documents)[measured]
    return WindowLosses(torch.tensor(nll, dtype=torch.float64), torch.tensor(counts), documents)


def perplexity_ratio(losses: WindowLosses, reference: WindowLosses) -> Ratio:
    """The perplexity of one model over that of another, on the same windows of at least two documents."""
    if not torch.equal(losses.tokens, reference.tokens):
        raise ValueError(
            f"can't pair windows of {losses.tokens.tolist()} tokens with windows of {reference.tokens.tolist()}; "
            "measure both models on the same tokens"
        )
    difference, tokens, count = losses.nll - reference.nll, losses.tokens, len(losses.tokens)
    if losses.documents is not None:
        numbers, places = losses.documents.unique(return_inverse=True)
        count = len(numbers)
        difference, tokens = (t.new_zeros(count).index_add(0, places, t) for t in (difference, tokens))
    if count < 2:
        raise ValueError(f"a standard error needs at least two windows and documents, got {count}; give more text")
    total = tokens.sum()
    mean = difference.sum() / total
    spread = (difference - tokens * mean).square().sum()
    error = (spread * count / (count - 1)).sqrt() / total
    return Ratio(mean.exp().item(), (mean.exp() * error).item())
