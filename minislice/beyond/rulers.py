"""Beyond the paper: what a deletion costs, measured one block at a time.

One block is changed, and the model's predictions on a few held-out sequences are computed again. The cost is the
Kullback-Leibler divergence from the dense model's predictions p to the new predictions q:

    sum_v p_v (log p_v - log q_v)          nats a token

The difference of losses, log p_y - log q_y for the next token y, has the same mean where p is right. But it has either
sign, so much of it is chance over a few thousand tokens. Linear algebra alone gives the share of the signal's energy
that a deletion loses, `Cost.lost`. It tells how the cost grows with each neuron, but not how much the blocks behind
depend on it. So two measurements for each block, with a third of its neurons gone and with all, give a scale and a
power.

Why measure, and not predict? Of several rulers, the divergence on one sequence knows best in which order deletions hurt
on others (data/results/README.md).
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..architecture.blocks import Block
from ..architecture.network import Network, inference
from ..calibration import Calibration, Signal
from ..corpus.batches import Batch, count_tokens
from ..likelihood import predicting
from .inner import Walk, block_moments, has_bias, keep_inner, output_matrix, places_of_neurons
from .neurons import least_harmful, solve_output
from .predictions import divergences, logits_behind

PROBE = 1 / 3  # of an MLP's neurons, deleted to measure what that costs
NOTHING = 1e-12  # of the signal's energy
LEAST = 1e-6  # nats a token: below it, a divergence is rounding


@dataclass(frozen=True)
class Cost:
    """The cost of deleting a block's neurons, or the whole block; in nats a token."""

    dropped: float  # the whole block gone
    neurons: int = 0  # of its MLP
    probed: float = 0.0  # `PROBE` of the neurons gone
    emptied: float = 0.0  # all of the neurons gone
    lost: tuple[float, ...] = ()  # the share of energy lost when 1/n, 2/n, ... n/n of the neurons are gone

    def of(self, left: int) -> float:
        """The cost of leaving so many neurons: a power of the energy lost, through the two measurements."""
        if left == self.neurons:
            return 0.0
        shares = np.array([1 - left / self.neurons, PROBE, 1.0])
        lost = np.interp(shares, np.linspace(0, 1, len(self.lost) + 1), [0.0, *self.lost])
        # Where neurons write nothing, the energy lost is zero, and zero has no power: a little is added.
        here, probe, whole = (lost + NOTHING * shares).tolist()
        probed, emptied = max(self.probed, LEAST), max(self.emptied, 2 * LEAST)
        power = math.log(max(emptied / probed, 1.01)) / math.log(whole / probe)
        return probed * (here / probe) ** power


def block_costs(
    net: Network, calibration: list[Batch], held_out: list[Batch], dense: list[Tensor], progress: bool = False
) -> list[Cost]:
    """The cost of deleting each block of a dense network, which stays as it is.

    W_out is solved for on the calibration batches; costs are measured on the ones that are held out. `dense` are the
    dense network's `predictions` of these.
    """
    held, measured = Calibration(calibration), Calibration(held_out)
    tokens = count_tokens(calibration)
    costs = []
    with inference(net.model):
        Z, X = held.embed(net), measured.embed(net)

        def measure(boundary: int, X: Signal) -> float:
            """The cost of having the signal X at a boundary."""

            def logits(x: Tensor, contexts: list[dict], batch: Batch) -> Tensor:
                return predicting(logits_behind(net, boundary, x, contexts, batch), batch)[0]

            return divergence(dense, map(logits, X, measured.contexts, held_out))

        for boundary, block in enumerate(tqdm(net.blocks, desc="costs", disable=not progress, leave=False), 1):
            dropped = measure(boundary, X)
            cost = Cost(dropped)
            if count := block.neurons:
                Z_next = held.room(net.trained_width, Z[0].dtype)
                C, _ = block_moments(Walk(held, Z, after=Z_next), block)
                probed = measure(boundary, measured.forward(without(block, C, round(PROBE * count)), X))
                emptied = dropped
                if block.attention is not None or block.is_mixture or has_bias(block):  # something else is left
                    emptied = measure(boundary, measured.forward(without(block, C, count), X))
                cost = Cost(dropped, count, probed, emptied, lost_shares(block, C, tokens))
            costs.append(cost)
            Z, X = Z_next if count else held.forward(block, Z), measured.forward(block, X)
    return costs


def without(block: Block, C: Tensor, delete: int) -> Block:
    """A copy of a block, with so many of its neurons deleted."""
    trial = copy.deepcopy(block)
    keep_inner(trial, *solve_output(trial, C, None, delete))
    return trial


def divergence(dense: Iterable[Tensor], changed: Iterable[Tensor]) -> float:
    """The mean divergence over all predictions, in nats a token.

    `dense` and `changed` are the two models' `predictions` of each batch; of the changed one, logits serve as well.
    """
    of_batches = [divergences(log_p, log_q) for log_p, log_q in zip(dense, changed, strict=True)]
    return torch.cat(of_batches).double().mean().item()


def lost_shares(block: Block, C: Tensor, tokens: int) -> tuple[float, ...]:
    """The energy lost as more and more of a block's neurons go, as a share of the energy of the signal behind it."""
    lost: list[float] = []  # in each round; one expert after another
    least_harmful(C, output_matrix(block), block.neurons, places_of_neurons(block), lost=lost)
    rounds = torch.tensor(lost).view(len(C) if block.is_mixture else 1, -1).sum(0)
    return tuple((rounds.cumsum(0) / (tokens * block.w_out[0].out_features)).tolist())
