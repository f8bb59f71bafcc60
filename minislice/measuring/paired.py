"""Two perplexities compared: their ratio, with a standard error.

Windows of text differ in difficulty far more than models do: one alone may have twice or ten times the perplexity of
the next. So two models are compared on the *same* windows, window by window (paired), where that difficulty cancels.
With nll_i the negative log-likelihood of window i, summed over its n_i predicted tokens, N = sum n_i, and m windows:

    d_i = nll_i(model) - nll_i(reference),        ratio of perplexities = exp(d),   d = sum d_i / N
    standard error of d  =  sqrt( m / (m - 1)  sum (d_i - n_i d)^2 ) / N
    standard error of the ratio  =  ratio * standard error of d

For windows of one length this is the textbook s / sqrt(m) of the differences; otherwise it is the standard error of a
ratio estimator (Cochran, Sampling Techniques, section 6.4). It is the error of having drawn these windows and not
others of the same text; it says nothing about another text, another calibration set or another seed.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers import PreTrainedModel

from ..corpus.batches import Tokens, token_batches
from ..likelihood import perplexity


@dataclass(frozen=True)
class WindowLosses:
    """What a model makes of each window of a text."""

    nll: Float64[Tensor, " windows"]  # summed over the window's predicted tokens, in nats
    tokens: Int64[Tensor, " windows"]  # predicted, in each

    @property
    def perplexity(self) -> float:
        """Of all windows together: what `perplexity` computes."""
        return math.exp(self.nll.sum().item() / self.tokens.sum().item())

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
        """How many standard errors the ratio lies above `value`; below it, less than zero.

        Within two, noise explains the difference.
        """
        distance = self.ratio - value
        return distance / self.standard_error if self.standard_error else math.copysign(math.inf, distance)


def window_losses(model: PreTrainedModel, tokens: Tokens, attention_mask=None) -> WindowLosses:
    """The negative log-likelihood of each window, by the protocol of `perplexity`.

    Args:
        tokens: ids, [windows, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: as the tokens; 0 where padded. A window with nothing to predict is left out.

    Raises:
        ValueError: tokens that don't fit the model, or nothing to predict in any window.
    """
    nll, counts = [], []
    for window in token_batches(model, tokens, attention_mask, batch_size=1):
        if count := window.predictions:
            nll.append(count * math.log(perplexity(model, window.ids, window.mask)))
            counts.append(count)
    if not counts:
        raise ValueError("nothing to predict: every sequence has a single token, or is padding")
    return WindowLosses(torch.tensor(nll, dtype=torch.float64), torch.tensor(counts))


def perplexity_ratio(losses: WindowLosses, reference: WindowLosses) -> Ratio:
    """The perplexity of one model over that of another, on the same windows, with its paired standard error.

    Raises:
        ValueError: the windows aren't the same, or there are fewer than two.
    """
    if not torch.equal(losses.tokens, reference.tokens):
        raise ValueError(
            f"can't pair windows of {losses.tokens.tolist()} tokens with windows of {reference.tokens.tolist()}; "
            "measure both models on the same tokens"
        )
    windows = len(losses.tokens)
    if windows < 2:
        raise ValueError(f"a standard error needs at least two windows, got {windows}; give more, shorter ones")
    difference, total = losses.nll - reference.nll, losses.tokens.sum()
    mean = difference.sum() / total
    spread = (difference - losses.tokens * mean).square().sum()
    error = (spread * windows / (windows - 1)).sqrt() / total
    return Ratio(mean.exp().item(), (mean.exp() * error).item())
