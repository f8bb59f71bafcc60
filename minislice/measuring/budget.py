"""Beyond the paper: one budget for all that can be deleted.

A model of a given size can be reached by a narrower signal (`slicing`), by fewer neurons in each MLP (`neurons`), by
leaving whole blocks out, and by any mixture. What each costs in loss is measured (`rulers`); taken together, the costs
are assumed to add up. The cheapest mixture of a size minimises

    sum of costs + price * parameters

for some price of a parameter, each block by itself: the price is found by bisection, for each width of the signal, and
the width with the least sum wins.
"""

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..architecture.blocks import Block
from ..architecture.modeling import SlicedForCausalLM
from ..architecture.network import Network, network
from ..corpus.batches import Batch, Tokens, token_batches
from ..neurons import common_neurons
from ..slicing import slice_model
from .cost import parameters
from .perplexity import perplexity
from .rulers import LEAST, Cost, block_costs
from .shapes import sliced_config

TRIALS = (0.9, 0.75)  # of D: the widths of the signal whose cost is measured
WIDTHS = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)  # of D, that are weighed
HELD_OUT = 4  # calibration sequences on which losses are measured
TOLERANCE = 0.01  # of the dense size, by which less may be left than was asked for
OPTIONS = {"adapter": "none", "repair": True}  # of `slice_model`: no adapters, so that sizes are known beforehand


@dataclass(frozen=True)
class Prices:
    """What deleting costs in a model, whatever the size that is wanted; in nats a token."""

    blocks: list[Cost]  # of the dense model
    widths: dict[int, float]  # of the signal, D among them at no cost: measured on sliced copies


@dataclass(frozen=True)
class Plan:
    """What to delete, and what that is expected to cost."""

    options: dict  # of `slice_model`
    parameters: int  # that will be left
    dense_parameters: int
    cost: float  # expected, in nats a token
    prices: Prices

    def __str__(self) -> str:
        k, neurons, dropped = (self.options[name] for name in ("width", "neurons", "drop"))
        costs, D = self.prices.blocks, max(self.prices.widths)
        trained = [cost.neurons for number, cost in enumerate(costs) if cost.neurons and number not in dropped]
        return "\n".join(
            [
                f"parameters: {self.parameters:,} of {self.dense_parameters:,} "
                f"({self.parameters / self.dense_parameters:.1%})",
                f"expected cost: {self.cost:.3f} nats a token, perplexity x {math.exp(self.cost):.2f}",
                f"signal: {f'{k} of {D} dimensions' if k < D else 'whole'}",
                f"neurons: {sum(neurons):,} of {sum(trained):,} in {len(trained)} MLPs: {' '.join(map(str, neurons))}",
                f"blocks left out, of {len(costs)}: {' '.join(map(str, dropped)) or 'none'}",
            ]
        )


def prices(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    widths: bool = True,
    multiple: int = 8,
    batch_size: int = 8,
    progress: bool = False,
) -> Prices:
    """Measure what deleting costs in a dense model, which stays as it is.

    The last batch of at most `HELD_OUT` calibration sequences measures, the others calibrate.

    Args:
        widths: measure what a narrower signal costs, too.

    Raises:
        ValueError: tokens that don't fit, or too few to hold some out; a model that is fused already.
    """
    net = network(model)
    if net.is_fused:
        raise ValueError("this model is fused already; compress the trained model")
    batches = token_batches(model, tokens, attention_mask, min(batch_size, HELD_OUT))
    if len(batches) < 2:
        raise ValueError(f"got {len(batches[0].ids)} calibration sequences; give more, the last ones measure losses")
    calibration, held_out = batches[:-1], batches[-1:]
    found = {net.trained_width: 0.0}
    for share in TRIALS if widths else ():
        k = rounded(share * net.trained_width, multiple)
        found[k] = measured_cost(model, calibration, held_out, {**OPTIONS, "multiple": multiple, "width": k})
    return Prices(block_costs(net, calibration, held_out, progress), found)


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
    """Decide what to delete of a dense model, which stays as it is, to reach a share `size` of its parameters.

    Args:
        widths: of the signal, as shares of D, that may be chosen.
        drop: whether whole blocks may be left out.
        multiple: neurons of an MLP, and widths, are multiples of this.
        known: prices that were measured before, for another size.

    Raises:
        ValueError: a size that can't be reached within 1%; and as `prices`.
    """
    if not 0 < size < 1:
        raise ValueError(f"size is the share of the parameters that is to be left, between 0 and 1, got {size}")
    if known is None:
        settings = {"multiple": multiple, "batch_size": batch_size, "progress": progress}
        known = prices(model, tokens, attention_mask, widths=min(widths) < 1, **settings)
    net, dense = network(model), parameters(model)
    D, common, choices = net.trained_width, {**OPTIONS, "multiple": multiple}, []
    needed = net.needed_by_cache if drop else None
    for k in sorted({D if share == 1 else rounded(share * D, multiple) for share in widths}, reverse=True):
        sizes = Sizes(net, {**common, "width": k})
        if choice := cheapest(sizes, known.blocks, size * dense, TOLERANCE * dense, multiple, needed):
            choices.append((choice.cost + between(known.widths, k), k, choice))
    if not choices:
        raise ValueError(
            f"nothing that can be deleted leaves {size:.0%} of this model's {dense:,} parameters, to {TOLERANCE:.0%}"
        )
    cost, k, choice = min(choices, key=lambda found: found[:2])
    options = {**common, "width": k, "neurons": choice.neurons, "drop": choice.dropped}
    return Plan(options, Sizes(net, options).total, dense, cost, known)


class Sizes:
    """The parameters of a model that is to be sliced so, counted without weights.

    Args:
        options: of `slice_model`.
    """

    def __init__(self, net: Network, options: dict):
        with torch.device("meta"):
            model = SlicedForCausalLM(sliced_config(net.model.config, **options))
        self.total = parameters(model)
        blocks = network(model).blocks
        self.blocks = [parameters(block) for block in blocks]
        self.per_neuron = [_per_neuron(block) for block in blocks]  # 0 where there are none


def _per_neuron(block: Block) -> int:
    if not block.neurons:
        return 0
    mlp = block.mlp_linears
    made = sum(r.weight.numel() + (0 if r.bias is None else r.bias.numel()) for r in mlp.readers)
    return (made + mlp.writer.weight.numel()) // mlp.neurons


Table = dict[int | None, tuple[float, int]]  # of a block, by what is left of it: its cost and its size


@dataclass(frozen=True)
class Choice:
    """What is left of each block: a number of neurons, 0 for a block without, or None of the whole block."""

    left: list[int | None]
    cost: float
    had_neurons: list[bool]

    @property
    def dropped(self) -> list[int]:
        return [number for number, count in enumerate(self.left) if count is None]

    @property
    def neurons(self) -> list[int]:
        return [count for count, had in zip(self.left, self.had_neurons, strict=True) if had and count is not None]


def cheapest(
    sizes: Sizes, costs: list[Cost], target: float, slack: float, multiple: int, needed: Collection[int] | None
) -> Choice | None:
    """Of all that leaves between `target` and so many parameters less, nearly the least sum of costs; None where
    nothing does.

    Args:
        slack: how far below the target the size may lie.
        needed: blocks that must not be left out; None for all.
    """
    tables: list[Table] = []
    for number, (cost, whole, each) in enumerate(zip(costs, sizes.blocks, sizes.per_neuron, strict=True)):
        counts = [*range(0, cost.neurons, multiple), cost.neurons]
        table = {count: (cost.of(count), whole - (cost.neurons - count) * each) for count in counts}
        if needed is not None and number not in needed:
            table[None] = (max(cost.dropped, LEAST), 0)
        tables.append(table)
    fixed = sizes.total - sum(sizes.blocks)

    def at(price: float) -> list[int | None]:
        return [min(table, key=lambda left: table[left][0] + price * table[left][1]) for table in tables]

    def size(left: list[int | None]) -> int:
        return fixed + sum(table[count][1] for table, count in zip(tables, left, strict=True))

    low, high = -60.0, 20.0  # logarithms of the price, in nats for each parameter
    if size(at(math.exp(high))) > target:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if size(at(math.exp(middle))) <= target else (middle, high)
    # One price has a block more or less than the other, and room, or need of it, for neurons to make up.
    choices = [_fitted(tables, at(price), target - fixed, multiple) for price in (0.0, math.exp(low), math.exp(high))]
    near = [left for left in choices if left and size(left) > target - slack]
    if not near:
        return None
    total, left = min((sum(table[n][0] for table, n in zip(tables, left, strict=True)), left) for left in near)
    return Choice(left, total, [bool(known.neurons) for known in costs])


def _fitted(tables: list[Table], left: list[int | None], room: float, multiple: int) -> list[int | None] | None:
    """The same with fewer neurons until it fits into the room, and then with as many more as fit; each time where it is
    cheapest for the size. None where it never fits.
    """

    def change(step: int) -> bool:
        used, best = sum(table[n][1] for table, n in zip(tables, left, strict=True)), None
        for number, (table, count) in enumerate(zip(tables, left, strict=True)):
            whole = max(known for known in table if known is not None)
            if count is None or whole == 0 or count == (whole if step > 0 else 0):
                continue
            to = min(count + step, whole) if step > 0 else (count - 1) // multiple * multiple
            (cost, size), (new_cost, new_size) = table[count], table[to]
            if step < 0 or used - size + new_size <= room:
                found = ((new_cost - cost) / abs(new_size - size), number, to)
                best = found if best is None else min(best, found)
        if best is not None:
            left[best[1]] = best[2]
        return best is not None

    left = list(left)
    while sum(table[n][1] for table, n in zip(tables, left, strict=True)) > room:
        if not change(-multiple):
            return None
    while change(multiple):
        pass
    return left


def rounded(width: float, multiple: int) -> int:
    """A width, down to a multiple where one is left."""
    return max(int(width + 1e-6) // multiple * multiple, min(multiple, int(width)))


def between(widths: dict[int, float], k: int) -> float:
    """The cost of a width from those that were measured: a power of the share that is deleted."""
    D = max(widths)
    if k in widths:
        return widths[k]
    (x, low), (x_next, high) = ((1 - width / D, max(cost, LEAST)) for width, cost in sorted(widths.items())[-2:-4:-1])
    power = math.log(max(high / low, 1.01)) / math.log(x_next / x)
    return low * ((1 - k / D) / x) ** power


def measured_cost(model: PreTrainedModel, calibration: list[Batch], held_out: list[Batch], options: dict) -> float:
    """What slicing a copy of the model costs on held-out sequences, in nats a token."""
    before = math.log(perplexity(model, tokens_of(held_out)))
    sliced = slice_model(copy.deepcopy(model), tokens_of(calibration), **options)
    return math.log(perplexity(sliced, tokens_of(held_out))) - before


def tokens_of(batches: list[Batch]) -> list[dict]:
    """As `corpus.batches.Tokens`."""
    return [
        {"input_ids": batch.ids} | ({} if batch.mask is None else {"attention_mask": batch.mask.long()})
        for batch in batches
    ]


def neurons_for(model: PreTrainedModel, size: float, multiple: int = 8) -> float:
    """The fraction of every MLP's neurons without which a share `size` of the model's parameters is left, or just less.

    Raises:
        ValueError: the MLPs haven't so many parameters.
    """
    net = network(model)
    count, each = common_neurons(net), sum(_per_neuron(block) for block in net.blocks)
    left = int((count - (1 - size) * parameters(model) / each) // multiple * multiple)
    if left <= 0:
        raise ValueError(
            f"all {count} neurons of each MLP are {count * each / parameters(model):.0%} of this model's parameters: "
            f"deleting neurons alone doesn't leave {size:.0%}"
        )
    return 1 - left / count


def compress(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    size: float = 0.8,
    plan: Plan | None = None,
    batch_size: int = 8,
    progress: bool = False,
    **options,
) -> PreTrainedModel:
    """Delete what costs least until a share `size` of a model's parameters is left, in place.

        minislice.compress(model, tokens, size=0.8)

    Args:
        plan: what `plan_compression` has decided; decided here without.
        options: those of `plan_compression`.

    Returns the same model object, a sliced one; ``model.slicing`` is a `SlicingReport`.

    Raises:
        ValueError: as `plan_compression` and `slice_model`.
    """
    if plan is None:
        settings = {"size": size, "batch_size": batch_size, "progress": progress, **options}
        plan = plan_compression(model, tokens, attention_mask, **settings)
    return slice_model(model, tokens, attention_mask, batch_size=batch_size, progress=progress, **plan.options)
