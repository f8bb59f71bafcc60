"""Beyond the paper: one budget for everything that can be deleted.

A narrower signal (`slicing`), fewer neurons in each MLP (`neurons`), dropped blocks, or a mixture of these make a
model of a given size. `rulers` measures what each costs; the costs are assumed to add up. For each width of the
signal, `allocation` finds what to leave of the blocks. The width with the least total cost wins.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType

from transformers import PreTrainedModel

from ..architecture.network import inference, network
from ..checks import is_several, require, require_flag, require_int, require_number
from ..corpus.batches import Batch, Tokens, count_tokens, listed, token_batches
from ..measuring.cost import parameters
from ..rotation import require_trained
from .allocation import cheapest, sizes_of
from .predictions import predictions
from .rulers import LEAST, Cost, block_costs, divergence
from .slicing import slice_model

TRIALS = (0.9, 0.75)  # of D: the widths of the signal whose cost is measured
WIDTHS = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)  # of D: candidates
HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 1 / 16, 4, 8  # calibration sequences on which costs are measured
TRIAL_TOKENS, COST_TOKENS = 2**14, 2**15  # at most so many calibrate a width's trial, and the trials of blocks
TOLERANCE = 0.01  # the model may be smaller than asked for by this share of the dense size
OPTIONS = {"adapter": "none", "repair": True}  # of `slice_model`: no adapters, so that sizes are known beforehand


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


@dataclass(frozen=True)
class Plan:
    """What to delete, and its expected cost."""

    options: dict  # of `slice_model`
    parameters: int  # left
    dense_parameters: int
    cost: float  # expected divergence from the dense model's predictions, in nats a token
    prices: Prices

    def __str__(self) -> str:
        k, neurons, dropped = (self.options[name] for name in ("width", "neurons", "drop"))
        costs, D, share = self.prices.blocks, max(self.prices.widths), self.parameters / self.dense_parameters
        trained = [cost.neurons for number, cost in enumerate(costs) if cost.neurons and number not in dropped]
        return (
            f"parameters: {self.parameters:,} of {self.dense_parameters:,} ({share:.1%})\n"
            f"expected cost: a divergence of {self.cost:.3f} nats a token from the dense model's predictions\n"
            f"signal: {f'{k} of {D} dimensions' if k < D else 'whole'}\n"
            f"neurons: {sum(neurons):,} of {sum(trained):,} in {len(trained)} MLPs: {' '.join(map(str, neurons))}\n"
            f"blocks left out, of {len(costs)}: {' '.join(map(str, dropped)) or 'none'}"
        )


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
        raise ValueError(
            f"nothing to predict in the last {held_out} calibration sequences, which measure costs; put others last"
        )
    return calibration, measuring


def first_tokens(batches: list[Batch], tokens: int) -> list[Batch]:
    """The first sequences, with about `tokens` tokens together; at least one."""
    count = sum(len(batch.ids) for batch in batches)
    return split(batches, max(count * tokens // max(count_tokens(batches), 1), 1))[0]


def split(batches: list[Batch], count: int) -> tuple[list[Batch], list[Batch]]:
    """The first `count` sequences, and the others."""
    first, others = [], []
    for batch in batches:
        middle = max(count - batch.first_sequence, 0)
        first.append(batch.part(0, middle))
        others.append(batch.part(middle, len(batch.ids)))
    return [batch for batch in first if len(batch.ids)], [batch for batch in others if len(batch.ids)]


def plan_compression(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    size: float = 0.8,
    widths: Sequence[float] = WIDTHS,
    drop: bool = True,
    multiple: int = 8,
    known: Prices | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Plan:
    """Decide what to delete from a dense model, which stays as it is, to leave a share `size` of its parameters.

    Args:
        widths: candidates for the signal's width, as shares of D.
        drop: whether whole blocks may be dropped.
        multiple: of the neurons left in an MLP, and of widths.
        known: prices measured before, for another size.

    Raises:
        ValueError: a size that can't be reached within 1%; and as `prices`.
    """
    require_number("size", size, above=0, below=1)
    require_int("multiple", multiple)
    require_flag("drop", drop)
    require(is_several(widths) and len(widths) > 0, "widths", "a list of shares of the model's width", widths)
    for share in widths:
        require_number("widths", share, above=0, most=1)
    require(isinstance(known, (Prices, NoneType)), "known", "the `prices` of an earlier plan", known)
    if known is None:
        settings = {"multiple": multiple, "batch_size": batch_size, "progress": progress}
        known = prices(model, tokens, attention_mask, narrower=min(widths) < 1, **settings)
    net, dense = network(model), parameters(model)
    if [cost.neurons for cost in known.blocks] != [block.neurons for block in net.blocks]:
        raise ValueError("these prices are another model's: its blocks differ; leave `known` out")
    D, plans = net.trained_width, []
    may_drop = {*range(len(net.blocks))} - net.needed_by_cache if drop else set()
    for k in sorted({D if share == 1 else rounded(share * D, multiple) for share in widths}, reverse=True):
        sizes = sizes_of(net, {**OPTIONS, "width": k})
        # Only the last block may lead to the head's full width: from the block before, the adapter would be larger.
        needed = {len(net.blocks) - 1} if k < D else set()
        if choice := cheapest(sizes, known.blocks, size * dense, TOLERANCE * dense, multiple, may_drop - needed):
            options = {**OPTIONS, "width": k, "neurons": choice.neurons, "drop": choice.dropped}
            cost = choice.cost + known.of_width(k)
            plans.append(Plan(options, sizes.elsewhere + choice.size, dense, cost, known))
    if not plans:
        raise ValueError(
            f"nothing that can be deleted leaves {size:.0%} of this model's {dense:,} parameters, to {TOLERANCE:.0%}"
        )
    return min(plans, key=lambda plan: (plan.cost, plan.options["width"]))


def rounded(width: float, multiple: int) -> int:
    """A width, rounded down to a multiple if one is left."""
    return max(int(width + 1e-6) // multiple * multiple, min(multiple, int(width)))


def compress(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    plan: Plan | None = None,
    reconstruct: bool = False,
    fisher: bool = False,
    batch_size: int = 8,
    progress: bool = False,
    **options,
) -> PreTrainedModel:
    """Delete what costs least until a share of a model's parameters is left, in place.

        minislice.compress(model, tokens, size=0.8)

    Args:
        plan: what `plan_compression` returned; without one it is called with `options`, such as `size` (0.8).
        reconstruct, fisher: as in `SlicingOptions`; the plan is the same.

    Returns the same model object, a sliced one.
    """
    require(isinstance(plan, (Plan, NoneType)), "plan", "what `plan_compression` returned", plan)
    if plan and options:
        raise ValueError(f"the plan has decided on these already: leave {', '.join(options)} out, or the plan")
    tokens = listed(tokens, "tokens")
    attention_mask = None if attention_mask is None else listed(attention_mask, "the attention mask")
    settings = {"batch_size": batch_size, "progress": progress}
    plan = plan or plan_compression(model, tokens, attention_mask, **settings, **options)
    settings |= {"reconstruct": reconstruct, "fisher": fisher, **plan.options}
    return slice_model(model, tokens, attention_mask, **settings)
