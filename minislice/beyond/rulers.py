"""Beyond the paper: what a deletion costs, measured one block at a time, and for the signal at two widths.

One block is changed, or the whole signal is narrower, and the model's predictions on a few held-out sequences are
computed again. The cost is the Kullback-Leibler divergence from the dense model's predictions p to the new ones q:

    sum_v p_v (log p_v - log q_v)          nats a token

The difference of losses, log p_y - log q_y for the next token y, has the same mean where p is right. But it has either
sign, so much of it is chance over a few thousand tokens. Linear algebra alone gives the share of the signal's energy
that a deletion loses, `Cost.lost`. It tells how the cost grows with each neuron, but not how much later blocks
depend on it. So two measurements for each block, with a third of its neurons gone and with all, give a scale and a
power.

Why measure, and not predict? Of several rulers, the divergence on one sequence knows best in which order deletions hurt
on others (data/results/README.md).
"""

import copy
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.blocks import Block
from ..architecture.network import Network, inference, network
from ..calibration import Calibration, Signal
from ..corpus.batches import Batch, Tokens, count_tokens, token_batches
from ..likelihood import logits_of_batch, predicting
from ..rotation import require_trained
from .inner import Walk, block_moments, has_bias, keep_inner, output_matrix, places_of_neurons
from .neurons import least_harmful, solve_output
from .slicing import slice_model

PROBE = 1 / 3  # of an MLP's neurons, deleted to measure what that costs
TRIALS = (0.9, 0.75)  # of D: the widths of the signal whose cost is measured
HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 1 / 16, 4, 8  # calibration sequences on which costs are measured
TRIAL_TOKENS, COST_TOKENS = 2**14, 2**15  # at most so many calibrate a width's trial, and the trials of blocks
OPTIONS = {"adapter": "none", "repair": True}  # of `slice_model`: no adapters, so that sizes are known beforehand
NOTHING = 1e-12  # of the signal's energy
LEAST = 1e-6  # nats a token: below it, a divergence is rounding
TOGETHER = 32  # predictions whose divergences are computed together: each has a row as long as the vocabulary


@dataclass(frozen=True)
class Cost:
    """The cost of deleting a block's neurons, or the whole block; in nats a token."""

    dropped: float  # the whole block gone
    neurons: int = 0  # of its MLP
    probed: float = 0.0  # `PROBE` of the neurons gone
    emptied: float = 0.0  # all of the neurons gone
    lost: tuple[float, ...] = ()  # the share of energy lost when 1/n, 2/n, ... n/n of the neurons are gone

    def of(self, left: int | None) -> float:
        """The cost of leaving so many neurons: a power of the energy lost, through the two measurements.

        None: the cost of leaving nothing of the block.
        """
        if left is None:
            return max(self.dropped, LEAST)
        if left == self.neurons:
            return 0.0
        shares = np.array([1 - left / self.neurons, PROBE, 1.0])
        lost = np.interp(shares, np.linspace(0, 1, len(self.lost) + 1), [0.0, *self.lost])
        # Where neurons write nothing, the energy lost is zero, and zero has no power: a little is added.
        here, probe, whole = (lost + NOTHING * shares).tolist()
        probed, emptied = max(self.probed, LEAST), max(self.emptied, 2 * LEAST)
        power = math.log(max(emptied / probed, 1.01)) / math.log(whole / probe)
        return probed * (here / probe) ** power


@dataclass(frozen=True)
class Prices:
    """What deletions cost in a model, for any wanted size; in nats a token."""

    blocks: list[Cost]  # of the dense model
    widths: dict[int, float]  # of each measured width of the signal; D costs nothing

    def of_width(self, k: int) -> float:
        """The cost of a width: a power of the share of the signal that is deleted, fitted to the measured widths."""
        if k in self.widths:
            return self.widths[k]
        D = max(self.widths)
        measured = sorted((1 - width / D, max(cost, LEAST)) for width, cost in self.widths.items() if width < D)
        if not measured:
            raise ValueError(f"these prices have none of a narrower signal; give widths=(1.0,), which keeps {D} whole")
        (x, low), (x_next, high) = measured[0], measured[-1]
        power = math.log(max(high / low, 1.01)) / math.log(x_next / x) if x < x_next else 1.0
        return low * ((1 - k / D) / x) ** power


def prices(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    narrower: bool = True,
    multiple: int = 8,
    batch_size: int = 8,
    progress: bool = False,
) -> Prices:
    """Measure what deletions cost in a dense model, which stays as it is; if `narrower`, a narrower signal's cost too.

    A sixteenth of the calibration sequences, the last ones, at least 4 and at most 8, measure; of the others about the
    first 16,384 tokens calibrate for a narrower signal, and 32,768 for blocks: more text takes no longer. The dense
    model's predictions for the tokens that measure stay in memory, in float32: [tokens, vocabulary].
    """
    net = network(model)
    require_trained(net, "compress")
    calibration, held_out = split_off(token_batches(model, tokens, attention_mask, batch_size))
    D = net.trained_width
    trial = first_tokens(calibration, TRIAL_TOKENS)
    costs, tokens = {D: 0.0}, [{"input_ids": batch.ids, "attention_mask": batch.mask} for batch in trial]
    with inference(model):
        dense = [predictions(model, batch) for batch in held_out]
    for share in TRIALS if narrower else ():
        k = rounded(share * D, multiple)
        with warnings.catch_warnings():  # the calibration set may be large enough where a trial's isn't
            warnings.simplefilter("ignore")
            sliced = slice_model(copy.deepcopy(model), tokens, width=k, **OPTIONS)
        with inference(sliced):
            costs[k] = divergence(dense, (predictions(sliced, batch) for batch in held_out))
    return Prices(block_costs(net, first_tokens(calibration, COST_TOKENS), held_out, dense, progress), costs)


def split_off(batches: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The sequences that calibrate, and those on which costs are measured, the last ones."""
    count = sum(len(batch.ids) for batch in batches)
    held_out = min(max(round(HELD_OUT * count), LEAST_HELD_OUT), MOST_HELD_OUT)
    if count <= held_out:
        raise ValueError(f"got {count} calibration sequences; give more, the last {held_out} measure costs")
    calibration, measuring = split(batches, count - held_out)
    if not any(batch.predictions for batch in measuring):
        raise ValueError(f"nothing to predict in the last {held_out} calibration sequences; put others last")
    return calibration, measuring


def first_tokens(batches: list[Batch], tokens: int) -> list[Batch]:
    """The first sequences, with about `tokens` tokens together; at least one."""
    count = sum(len(batch.ids) for batch in batches)
    return split(batches, max(count * tokens // max(count_tokens(batches), 1), 1))[0]


def split(batches: list[Batch], count: int) -> tuple[list[Batch], list[Batch]]:
    """The first `count` sequences, and the others."""
    first = [batch.part(0, count - batch.first_sequence) for batch in batches if batch.first_sequence < count]
    others = [batch.part(max(count - batch.first_sequence, 0), len(batch.ids)) for batch in batches]
    return first, [batch for batch in others if len(batch.ids)]


def rounded(width: float, multiple: int) -> int:
    """A width, rounded down to a multiple if one is left."""
    return max(int(width + 1e-6) // multiple * multiple, min(multiple, int(width)))


def block_costs(
    net: Network, calibration: list[Batch], held_out: list[Batch], dense: list[Tensor], progress: bool = False
) -> list[Cost]:
    """The cost of deleting each block of a dense network, which stays as it is.

    W_out is solved for on the calibration batches; costs are measured on the ones that are held out. `dense` are the
    dense network's `predictions` of these.
    """
    calibration_set, measured = Calibration(calibration), Calibration(held_out)
    ids, costs = [batch.ids for batch in held_out], []
    energy = count_tokens(calibration) * net.trained_width  # of the signal after a block, weighted as in `moments`
    with inference(net.model):
        Z, X = calibration_set.embed(net), measured.embed(net)

        def measure(boundary: int, X: Signal) -> float:
            """The cost of having the signal X at a boundary."""
            logits = (net.logits(boundary, *given) for given in zip(X, measured.contexts, ids, strict=True))
            return divergence(dense, (predicting(*pair)[0] for pair in zip(logits, held_out, strict=True)))

        for boundary, block in enumerate(tqdm(net.blocks, desc="costs", disable=not progress, leave=False), 1):
            dropped = measure(boundary, X)
            cost = Cost(dropped)
            if count := block.neurons:
                Z_next = calibration_set.new_signal(net.trained_width, Z[0].dtype)
                C, _ = block_moments(Walk(calibration_set, Z, into=Z_next), block)
                probed = measure(boundary, measured.forward(without(block, C, round(PROBE * count)), X))
                emptied = dropped
                if block.attention is not None or block.is_mixture or has_bias(block):  # something else is left
                    emptied = measure(boundary, measured.forward(without(block, C, count), X))
                lost: list[float] = []  # the energy, in each round, of one expert after another
                least_harmful(C, output_matrix(block), count, places_of_neurons(block), lost=lost)
                shares = torch.tensor(lost).view(len(C) if block.is_mixture else 1, -1).sum(0).cumsum(0) / energy
                cost = Cost(dropped, count, probed, emptied, tuple(shares.tolist()))
            costs.append(cost)
            Z, X = Z_next if count else calibration_set.forward(block, Z), measured.forward(block, X)
    return costs


def without(block: Block, C: Tensor, delete: int) -> Block:
    """A copy of a block, with so many of its neurons deleted."""
    trial = copy.deepcopy(block)
    keep_inner(trial, *solve_output(trial, C, None, delete))
    return trial


def predictions(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "predicted vocabulary"]:
    """The log-probabilities of all tokens of the vocabulary at every prediction, in float32 or wider."""
    return predicting(logits_of_batch(model, batch), batch)[0].log_softmax(-1)


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


def divergence(dense: Iterable[Tensor], changed: Iterable[Tensor]) -> float:
    """The mean divergence over all predictions, in nats a token.

    `dense` and `changed` are the two models' `predictions` of each batch; of the changed one, logits serve as well.
    """
    return torch.cat([divergences(p, q) for p, q in zip(dense, changed, strict=True)]).double().mean().item()
