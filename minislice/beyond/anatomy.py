"""Beyond the paper: which rows of W_in make the query, key and value of a head, and which make a neuron.

The table of families says which linears read and write the signal. The rest shows while the block's own modules run
on outputs of W_in that are made up:

- The first token attends to itself alone, so W_out reads its value. Numbered values show which row is read where.
- The second token's output is a mean of two values. The log odds of their weights are a difference of two scores; its
  derivatives show which rows make the query, and which the key, of each head.
- The second derivative, by query and key, is RoPE's rotation: it shows which two rows are turned together.
- An activation at twice its input shows whether it is homogeneous, as ReLU is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..architecture.blocks import Block
from ..architecture.linears import ExpertsReader, ExpertsWriter, Linear
from ..architecture.network import Network, inference
from ..rotation import linear_map
from .inner import inputs_of

SMALL, LOUD = 1e-4, 1e3  # made-up outputs whose scores are nearly zero, and some that a bound would clip
TRIES = 8  # of an activation
ZERO = 1e-14  # of a derivative, as a fraction of the largest


@dataclass(frozen=True)
class Part:
    """Some rows of a linear with their biases, or columns of a linear that writes: `numbers` counts them."""

    tensors: list[Tensor]  # views; the first dimension is the one that `numbers` counts
    numbers: Tensor

    def multiply(self, matrix: Tensor) -> None:
        """Replace the rows by matrix times the rows, in place."""
        for tensor in self.tensors:
            tensor[self.numbers] = matrix @ tensor[self.numbers]

    def scale(self, numbers: Tensor) -> None:
        """Multiply each row by its number, in place."""
        for tensor in self.tensors:
            tensor[self.numbers] *= numbers.view(-1, *[1] * (tensor.ndim - 1))

    def reorder(self, order: Tensor) -> None:
        """Row i becomes what row order[i] was, in place."""
        for tensor in self.tensors:
            tensor[self.numbers] = tensor[self.numbers[order]]


def rows_of(linear: Linear, numbers: Tensor) -> Part:
    return Part([tensor for tensor in (linear.weight, linear.bias) if tensor is not None], numbers)


def exchange(places: Sequence[Sequence[Part]], order: Sequence[int]) -> None:
    """The parts of place i become what those of place order[i] were, in place."""
    tensors = [[(tensor, part.numbers) for part in place for tensor in part.tensors] for place in places]
    before = [[tensor[numbers] for tensor, numbers in place] for place in tensors]
    for place, source in zip(tensors, order, strict=True):
        for (tensor, numbers), rows in zip(place, before[source], strict=True):
            tensor[numbers] = rows


@dataclass(frozen=True)
class Head:
    query: Part
    output: Part  # columns of W_out
    others: list[Part]  # parameters of this head besides: the scale of its own norm, its sink


@dataclass(frozen=True)
class Group:
    """A key and a value, and the heads that share them."""

    key: Part
    value: Part
    heads: list[Head]
    others: list[Part]


@dataclass(frozen=True)
class Attention:
    """The attention of a block; every head has `size` dimensions."""

    groups: list[Group]
    size: int
    pairs: Tensor  # [pairs, 2]: the dimensions of a key that RoPE turns together
    unturned: Tensor  # the other dimensions
    norms: list[list[Part]]  # of the queries and the keys, or none: one scale for all heads, or one for each
    clips: bool  # whether queries, keys and values are cut off at a bound
    has_sinks: bool  # whether weights sum to less than 1
    has_slopes: bool  # whether scores depend on the distance without any query (ALiBi)
    rounds: bool  # whether it computes in float32 somewhere, whatever its dtype


@dataclass(frozen=True)
class Scalable:
    """Rows of W_in: c times the input of a neuron gives c^power times the neuron, for c > 0."""

    rows: Part
    power: int
    signed: bool  # for c < 0 too, as in a gated neuron's `up`


@dataclass(frozen=True)
class Neurons:
    """The neurons of an MLP, or of one expert."""

    count: int
    made: list[Part]  # rows of W_in: one part, or two with a gate
    read: Part  # columns of W_out
    scalable: list[Scalable]  # those of `made` that are


@dataclass(frozen=True)
class Stretch:
    """Boundaries in a row, the numbers `first` to `last`, that have one basis: no block between them has an adapter."""

    net: Network
    first: int
    last: int

    @property
    def width(self) -> int:
        return self.net.widths[self.first]

    @property
    def is_at_an_end(self) -> bool:
        return self.first == 0 or self.last == len(self.net.blocks)

    @property
    def embeddings(self) -> list[nn.Embedding]:
        return self.net.embeddings if self.first == 0 else []

    @property
    def readers(self) -> list[Linear]:
        head = [self.net.head] if self.last == len(self.net.blocks) else []
        return [linear for block in self.net.blocks[self.first : self.last + 1] for linear in block.w_in] + head

    @property
    def writers(self) -> list[Linear]:
        return [linear for block in self.net.blocks[max(self.first - 1, 0) : self.last] for linear in block.w_out]

    def set_adapters(self, before: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]) -> None:
        """Replace the adapters at both ends, of any form, by what these functions make of their matrices."""
        for index, of in ((self.first - 1, before), (self.last, behind)):
            if 0 <= index < len(self.net.blocks):
                block, width = self.net.blocks[index], self.net.widths[index]
                S = block.adapter(torch.eye(width, dtype=torch.float64))
                block.adapter = linear_map(of(S), like=next(block.parameters()))


def stretches(net: Network) -> list[Stretch]:
    """All boundaries of a network."""
    adapted = [index for index, block in enumerate(net.blocks) if block.adapter is not None]
    firsts, lasts = [0, *(index + 1 for index in adapted)], [*adapted, len(net.blocks)]
    return [Stretch(net, first, last) for first, last in zip(firsts, lasts, strict=True)]


def attentions(net: Network) -> list[Attention]:
    """The attention of every block that has one."""
    places = [(index, block) for index, layer in enumerate(net.layers) for block in layer.blocks if block.attention]
    runs = [_AttentionRun(block, net.model.config.num_attention_heads) for _, block in places]
    with inference(net.model):
        batch = max((max(run.heads, run.size) for run in runs), default=1)
        _, contexts = net.embed(torch.ones(batch, 2, dtype=torch.long, device=net.model.device))
        return [run.attention(contexts[index], batch) for run, (index, _) in zip(runs, places, strict=True)]


def mlps(net: Network) -> list[Neurons]:
    """The neurons of every MLP and of every expert."""
    with inference(net.model):
        return [neurons for block in net.blocks if block.neurons for neurons in _neurons(block)]


def _inner_side(
    call: Callable, readers: Sequence[Linear], writer: Linear, outputs: Tensor, skipped: Sequence[nn.Module] = ()
) -> Tensor:
    """What W_out reads when `outputs` are the outputs of W_in, and the modules in `skipped` return their input."""
    pieces = outputs.split([linear.out_features for linear in readers], dim=-1)
    instead = dict(zip(map(_module, readers), pieces, strict=True))

    def replace(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return instead[module].clone() if module in instead else inputs[0]  # a copy, for some clip it in place

    hooks = [module.register_forward_hook(replace) for module in (*instead, *skipped)]
    try:
        with inputs_of([writer]) as inputs:
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return inputs[0]


def _module(linear: Linear) -> nn.Module:
    return getattr(linear, "module", linear)


def _called(block: Block, name: str, signal: Tensor, context: dict) -> Callable:
    """A call of a module inside a block, on a signal that doesn't matter."""
    residual = {block.residual: signal.new_zeros(())} if block.residual else {}
    return partial(block.get_submodule(name), signal, **residual, **context)


def _random(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)


class _AttentionRun:
    """A block's attention, which runs on made-up outputs of W_in: [batch, 2 tokens, rows of W_in]."""

    def __init__(self, block: Block, heads: int):
        self.block, self.heads = block, heads
        self.readers = [linear for name, linear in block.readers.items() if name.startswith("attention.")]
        self.writer = next(linear for name, linear in block.writers.items() if name.startswith("attention."))
        self.size = self.writer.in_features // heads
        self.rows = sum(linear.out_features for linear in self.readers)
        linears = {*map(_module, (*self.readers, self.writer))}
        others = [module for module in block.attention.children() if not linears & {*module.modules()}]
        self.norms = [module for module in others if [*module.parameters()]]
        if len(self.norms) not in (0, 2):
            raise ValueError("can't tell which norm of an attention is the queries', and which the keys'")

    def attention(self, context: dict, batch: int) -> Attention:
        like = self.readers[0].weight
        call = _called(self.block, "attention", like.new_zeros(batch, 2, like.shape[1]), context)
        self.run = lambda x: _inner_side(call, self.readers, self.writer, x.expand(batch, 2, self.rows), self.norms)
        nothing = like.new_zeros(batch, 2, self.rows)

        with _Casts() as casts:
            share = self.run(nothing + SMALL)[0, 0] / SMALL  # of the first token's value: 1, or less with a sink
        numbers = torch.arange(1, self.rows + 1).to(like) / self.rows
        found = self.run(nothing + SMALL * numbers)[0, 0] / SMALL / share * self.rows - 1
        self.values = found.round().long().view(self.heads, self.size)  # the row that each column of W_out reads
        if not (found - self.values.flatten()).abs().max() < 0.1:
            raise ValueError("can't see the heads of an attention: W_out doesn't read its values one by one")
        loud = nothing.clone()
        loud[..., self.values] = LOUD

        apart = nothing.clone()  # the first token's values are 1 in a head's dimension 0, the second's in dimension 1
        apart[:, 0, self.values[:, 0]] = apart[:, 1, self.values[:, 1]] = 1
        every, first = torch.arange(self.heads), torch.zeros(self.size, dtype=torch.long)
        noise = 0.01 * _random(like, *nothing.shape)
        noise[..., self.values] = 0
        _, slopes = self.odds(apart, every)
        moved, _ = self.odds(apart + noise, every)
        is_key = moved[:, 0] > 0
        keys, queries = is_key.nonzero()[:, 1], ((moved[:, 1] > 0) & ~is_key).nonzero()[:, 1]
        keys, queries = keys.view(self.heads, self.size), queries.view(self.heads, self.size)
        apart[torch.arange(self.size), 1, queries[0]] = 1  # unit vectors, a different one in each sequence
        turn, _ = self.odds(apart, first)
        turned = (turn[:, 0, keys[0]] > 0).fill_diagonal_(False)  # [query, key]: RoPE, between two neighbours
        pairs = turned.nonzero()
        scales = [_scales(norm, self.size) for norm in self.norms]
        return Attention(
            groups=self.groups(queries, keys, scales),
            size=self.size,
            pairs=pairs[pairs[:, 0] < pairs[:, 1]],
            unturned=(~turned.any(1)).nonzero().flatten(),
            norms=scales,
            clips=not torch.allclose(self.run(loud)[0, 0], LOUD * share, rtol=1e-3),
            has_sinks=not torch.allclose(share, torch.ones_like(share), rtol=1e-3),
            has_slopes=bool(slopes.abs().max() > 1e-6),
            rounds=casts.to_float32,
        )

    def odds(self, outputs: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """The second token's log odds in the head[i] of sequence i; first the size of their derivative by `outputs`."""
        with torch.enable_grad():
            outputs = outputs.clone().requires_grad_()
            sequence = torch.arange(len(head))
            mean = self.run(outputs)[:, 1].unflatten(-1, (self.heads, self.size))[sequence, head]
            odds = (mean[:, 1] / mean[:, 0]).log()
            (slope,) = torch.autograd.grad(odds.sum(), outputs)
        slope[..., self.values] = 0
        slope = slope[sequence].abs()
        return slope.where(slope > ZERO * slope.max(), 0), odds.detach()

    def groups(self, queries: Tensor, keys: Tensor, scales: list[list[Part]]) -> list[Group]:
        """The heads, by the key and value that they share."""
        sinks = [p for p in self.block.attention.parameters(recurse=False) if p.shape == (self.heads,)]
        shared: dict[int, list[int]] = {}
        for head, key in enumerate(keys[:, 0].tolist()):
            shared.setdefault(key, []).append(head)
        columns = torch.arange(self.heads * self.size).view(self.heads, self.size)
        groups = []
        for members in shared.values():
            heads = []
            for head in members:
                others = [Part([sink], torch.tensor([head])) for sink in sinks] + _one_of(scales[:1], head, self.heads)
                heads.append(Head(self.part(queries[head]), Part([self.writer.weight.T], columns[head]), others))
            others = _one_of(scales[1:], len(groups), len(shared))
            groups.append(Group(self.part(keys[members[0]]), self.part(self.values[members[0]]), heads, others))
        return groups

    def part(self, numbers: Tensor) -> Part:
        """Rows of W_in by their numbers, when its linears stand one below the other."""
        linears = iter(self.readers)
        linear = next(linears)
        while numbers[0] >= linear.out_features:
            numbers, linear = numbers - linear.out_features, next(linears)
        return rows_of(linear, numbers)


class _Casts(TorchDispatchMode):
    """Notices a cast to float32."""

    to_float32 = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.to_float32 |= function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.float32
        return function(*args, **kwargs)


def _scales(norm: nn.Module, size: int) -> list[Part]:
    """The scale, with the shift, of a norm inside attention: one part for all heads, or one for each."""
    leaves = [[*leaf.parameters(recurse=False)] for leaf in norm.modules()]
    tables = [[tensor.view(-1, size) for tensor in leaf] for leaf in leaves if leaf]
    return [Part(list(rows), torch.arange(size)) for table in tables for rows in zip(*table, strict=True)]


def _one_of(scales: Sequence[list[Part]], number: int, count: int) -> list[Part]:
    """The scale of one of so many heads, where each has one."""
    return [parts[number] for parts in scales if len(parts) == count]


def _neurons(block: Block) -> list[Neurons]:
    found = []
    for name, writer in block.writers.items():
        module = name.rpartition(".")[0]
        if isinstance(writer, ExpertsWriter):
            found += _of_experts(block.experts)
        elif module.startswith("mlp"):
            count = writer.in_features
            readers = [linear for reader, linear in block.readers.items() if reader.rpartition(".")[0] == module]
            starts = [(linear, start) for linear in readers for start in range(0, linear.out_features, count)]
            made = [rows_of(linear, torch.arange(start, start + count)) for linear, start in starts]
            call = _called(block, module, writer.weight.new_zeros(1, TRIES, readers[0].in_features), {})
            numbers = torch.arange(len(made) * count).split(count)
            growth = _growth(partial(_inner_side, call, readers, writer), numbers, writer.weight)
            found.append(_described(made, Part([writer.weight.T], torch.arange(count)), growth))
    return found


def _of_experts(experts: nn.Module) -> list[Neurons]:
    made, read = ExpertsReader(experts).matrices(), ExpertsWriter(experts).matrices()
    biases = [experts.gate_up_proj_bias] if experts.has_bias else []
    numbers = torch.arange(made.shape[1])
    count = read.shape[2]
    numbers = numbers.view(-1, count) if experts.is_concatenated else numbers.view(count, -1).T
    growth = _growth(experts._apply_gate, numbers, read)
    return [
        _described(
            [Part([tensor[expert] for tensor in (made, *biases)], rows) for rows in numbers],
            Part([read[expert].T], torch.arange(count)),
            growth,
        )
        for expert in range(len(read))
    ]


def _growth(
    activate: Callable[[Tensor], Tensor], numbers: Sequence[Tensor], like: Tensor
) -> list[tuple[int, bool] | None]:
    """Power and sign of `Scalable` for the inputs with these numbers; None where a neuron doesn't grow by a power."""
    x, growth = 3 * _random(like, 1, TRIES, sum(map(len, numbers))), []
    before = activate(x)

    def grows(which: Tensor, factor: float, by: float) -> bool:
        changed = x.clone()
        changed[..., which] *= factor
        return torch.allclose(activate(changed), by * before, rtol=1e-4, atol=1e-6)

    for which in numbers:
        powers = [power for power in (1, 2) if grows(which, 2, 2**power)]
        growth.append((powers[0], grows(which, -2, -2)) if powers else None)
    return growth


def _described(made: list[Part], read: Part, growth: list[tuple[int, bool] | None]) -> Neurons:
    scalable = [Scalable(rows, *grows) for rows, grows in zip(made, growth, strict=True) if grows]
    return Neurons(len(read.numbers), made, read, scalable)
