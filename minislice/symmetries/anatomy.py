"""Which rows of W_in make the query, key and value of a head, and which make a neuron.

The table of families says which linears read and write the signal. The rest is found by running the block's own
modules, with made-up numbers in place of what W_in gives:

values    The first token attends to itself alone, so W_out reads its value. Each row of W_in gives its own number, and
          the numbers that arrive at W_out show which row is read where.
queries   The second token attends to two tokens. Its output is a mean of their values, which shows the two weights.
and keys  The log of their ratio is a difference of two scores, q_2 k_2 - q_2 k_1: its derivative by a row of the first
          token isn't zero if the row makes a key, and by a row of the second if it makes a query or a key.
RoPE      With a unit vector as the query, the derivative by the first token's key shows which two dimensions RoPE
          turns together.
neurons   An activation is computed at twice its input. If it is twice as large, as ReLU is, or four times, as ReLU
          squared is, the input may be scaled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..architecture.blocks import Block
from ..architecture.linears import ExpertsReader, ExpertsWriter, Linear
from ..architecture.network import Network, inference
from ..beyond.inner import inputs_of
from .places import Attention, Group, Head, Neurons, Part, Scalable, columns_of, rows_of

SMALL, LOUD = 1e-4, 1e3  # made-up numbers: scores are nearly zero, and a bound would clip
TRIES = 8  # inputs of an activation
ZERO = 1e-14  # of a derivative, as a fraction of the largest


def attentions(net: Network) -> list[Attention]:
    """The attention of every block that has one.

    Raises:
        ValueError: one of them isn't made of queries, keys and values, head by head.
    """
    try:
        runs = [_AttentionRun(block, net.model.config.num_attention_heads) for block in net.blocks if block.attention]
        with inference(net.model):
            sequences = max((max(run.heads, run.size) for run in runs), default=1)
            _, contexts = net.embed(torch.ones(sequences, 2, dtype=torch.long, device=net.model.device))
            return [run.describe(contexts[run.block.layer], sequences) for run in runs]
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of any kind, for the attention may be of any class
        raise ValueError(f"its attention isn't made of queries, keys and values, head by head: {error}") from error


def mlps(net: Network) -> list[Neurons]:
    """The neurons of every MLP and of every expert."""
    with inference(net.model):
        return [neurons for block in net.blocks if block.neurons for neurons in _neurons(block)]


class _AttentionRun:
    """A block's attention, to be run with made-up outputs of W_in: [sequences, 2 tokens, rows of W_in]."""

    def __init__(self, block: Block, heads: int):
        self.block, self.heads = block, heads
        self.readers = [linear for name, linear in block.readers.items() if name.startswith("attention.")]
        self.writer = next(linear for name, linear in block.writers.items() if name.startswith("attention."))
        self.size = self.writer.in_features // heads
        linears = {*map(_module, (*self.readers, self.writer))}
        others = [module for module in block.attention.children() if not linears & {*module.modules()}]
        self.norms = [module for module in others if [*module.parameters()]]
        if len(self.norms) not in (0, 2):
            raise ValueError("its norms aren't one for queries and one for keys")

    def describe(self, context: dict, sequences: int) -> Attention:
        weight = self.readers[0].weight
        self.call = _called(self.block, "attention", weight.new_zeros(sequences, 2, weight.shape[1]), context)
        self.nothing = weight.new_zeros(sequences, 2, sum(linear.out_features for linear in self.readers))
        with _Casts() as casts:  # every value is SMALL
            share = self.run(self.nothing + SMALL)[0, 0] / SMALL  # the first token's weight: 1, or less with a sink
        self.values = self.find_values(share)
        loud = self.nothing.clone()
        loud[..., self.values] = LOUD
        queries, keys, has_slopes = self.find_queries_and_keys()
        turned = self.find_turned(queries[0], keys[0])
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
            has_slopes=has_slopes,
            rounds=casts.to_float32,
        )

    def run(self, outputs: Tensor) -> Tensor:
        """What W_out reads, [sequences, 2, heads * size], when W_in gives `outputs`, and norms change nothing."""
        return _inner_side(self.call, self.readers, self.writer, outputs, self.norms)

    def find_values(self, share: Tensor) -> Tensor:
        """[heads, size]: the row of W_in that each column of W_out reads."""
        rows = self.nothing.shape[-1]
        numbers = torch.arange(1, rows + 1).to(share) / rows
        arrived = self.run(self.nothing + SMALL * numbers)[0, 0] / SMALL / share * rows - 1
        values = arrived.round().long()
        if not (arrived - values).abs().max() < 0.1:
            raise ValueError("W_out doesn't read its values one by one")
        return values.view(self.heads, self.size)

    def find_queries_and_keys(self) -> tuple[Tensor, Tensor, bool]:
        """[heads, size] each: the rows of W_in that make them; and whether scores depend on the distance alone, too."""
        every, outputs = torch.arange(self.heads), self.told_apart()
        noise = 0.01 * _random(outputs, *outputs.shape)
        noise[..., self.values] = 0
        slopes = self.odds(outputs, every)[1]
        by_first, by_second = self.odds(outputs + noise, every)[0].unbind(1)
        is_key = by_first > 0
        is_query = (by_second > 0) & ~is_key
        queries, keys = (rows.nonzero()[:, 1].view(self.heads, self.size) for rows in (is_query, is_key))
        return queries, keys, bool(slopes.abs().max() > 1e-6)

    def find_turned(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[size, size]: whether RoPE turns two different dimensions of the first head together."""
        outputs, first = self.told_apart(), torch.zeros(self.size, dtype=torch.long)
        outputs[torch.arange(self.size), 1, queries] = 1  # unit vectors, a different one in each sequence
        return (self.odds(outputs, first)[0][:, 0, keys] > 0).fill_diagonal_(False)

    def told_apart(self) -> Tensor:
        """Values alone: in each head dimension 0 is 1 for the first token, dimension 1 for the second."""
        outputs = self.nothing.clone()
        outputs[:, 0, self.values[:, 0]] = outputs[:, 1, self.values[:, 1]] = 1
        return outputs

    def odds(self, outputs: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
        """The log odds, log(weight on the second value / weight on the first), in the head heads[i] of sequence i.

        `told_apart` shows both weights. Returns the size of the odds' derivative by `outputs`, and the odds.
        """
        with torch.enable_grad():
            outputs = outputs.clone().requires_grad_()
            sequence = torch.arange(len(heads))
            mean = self.run(outputs)[:, 1].unflatten(-1, (self.heads, self.size))[sequence, heads]
            odds = (mean[:, 1] / mean[:, 0]).log()
            (slope,) = torch.autograd.grad(odds.sum(), outputs)
        slope[..., self.values] = 0
        slope = slope[sequence].abs()
        return slope.where(slope > ZERO * slope.max(), 0), odds.detach()

    def groups(self, queries: Tensor, keys: Tensor, scales: list[list[Part]]) -> list[Group]:
        """The heads, by the key and value that they share."""
        sinks = [p for p in self.block.attention.parameters(recurse=False) if p.shape == (self.heads,)]
        of_queries, of_keys = scales or ([], [])
        shared: dict[int, list[int]] = {}
        for head, key in enumerate(keys[:, 0].tolist()):
            shared.setdefault(key, []).append(head)

        def head_of(number: int) -> Head:
            columns = torch.arange(number * self.size, (number + 1) * self.size)
            others = [Part([sink], torch.tensor([number])) for sink in sinks]
            others += of_queries[number : number + 1] if len(of_queries) == self.heads else []
            return Head(self.part(queries[number]), columns_of(self.writer.weight, columns), others)

        groups = []
        for number, members in enumerate(shared.values()):
            key, value = self.part(keys[members[0]]), self.part(self.values[members[0]])
            others = of_keys[number : number + 1] if len(of_keys) == len(shared) else []
            groups.append(Group(key, value, [head_of(member) for member in members], others))
        return groups

    def part(self, numbers: Tensor) -> Part:
        """Rows of W_in by their numbers, when its linears stand one below the other."""
        for linear in self.readers[:-1]:
            if numbers[0] < linear.out_features:
                return rows_of(linear, numbers)
            numbers = numbers - linear.out_features
        return rows_of(self.readers[-1], numbers)


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


def _neurons(block: Block) -> Iterator[Neurons]:
    for name, writer in block.writers.items():
        module = name.rpartition(".")[0]
        if isinstance(writer, ExpertsWriter):
            yield from _of_experts(block.experts)
        elif module.startswith("mlp"):
            readers = [linear for reader, linear in block.readers.items() if reader.rpartition(".")[0] == module]
            columns = torch.arange(writer.in_features)
            starts = [(linear, start) for linear in readers for start in range(0, linear.out_features, len(columns))]
            made = [rows_of(linear, start + columns) for linear, start in starts]
            call = _called(block, module, writer.weight.new_zeros(1, TRIES, readers[0].in_features), {})
            inputs = torch.arange(len(made) * len(columns)).view(len(made), -1)
            activate = partial(_inner_side, call, readers, writer)
            yield _described(made, columns_of(writer.weight, columns), activate, inputs)


def _of_experts(experts: nn.Module) -> Iterator[Neurons]:
    made, read = ExpertsReader(experts).matrices(), ExpertsWriter(experts).matrices()
    tensors = [made, experts.gate_up_proj_bias] if experts.has_bias else [made]
    count, numbers = read.shape[2], torch.arange(made.shape[1])  # of `gate` and `up`, one after the other or in turn
    inputs = numbers.view(-1, count) if experts.is_concatenated else numbers.view(count, -1).T
    for expert in range(len(read)):
        parts = [Part([tensor[expert] for tensor in tensors], rows) for rows in inputs]
        yield _described(parts, columns_of(read[expert], torch.arange(count)), experts._apply_gate, inputs)


def _described(made: list[Part], read: Part, activate: Callable[[Tensor], Tensor], inputs: Tensor) -> Neurons:
    """Neurons that `activate` computes; inputs[i] are the numbers of those inputs that the rows of made[i] give."""
    x = 3 * _random(read.tensors[0], 1, TRIES, inputs.numel())
    before, scalable, order = activate(x), [], torch.arange(inputs.shape[1]).flip(0)
    reordered = x.clone()
    reordered[..., inputs] = x[..., inputs[:, order]]
    alike = torch.allclose(activate(reordered), before[..., order], rtol=1e-4, atol=1e-6)

    def grows(which: Tensor, factor: float, by: float) -> bool:
        changed = x.clone()
        changed[..., which] *= factor
        return torch.allclose(activate(changed), by * before, rtol=1e-4, atol=1e-6)

    for rows, which in zip(made, inputs, strict=True):
        powers = [power for power in (1, 2) if grows(which, 2, 2**power)]
        scalable += [Scalable(rows, power, signed=grows(which, -2, -2)) for power in powers[:1]]
    return Neurons(len(read.numbers), made, read, alike, scalable)


def _inner_side(
    call: Callable, readers: Sequence[Linear], writer: Linear, outputs: Tensor, skipped: Sequence[nn.Module] = ()
) -> Tensor:
    """What W_out reads when `outputs` are the outputs of W_in, and the modules in `skipped` return their input."""
    pieces = outputs.split([linear.out_features for linear in readers], dim=-1)
    instead = dict(zip(map(_module, readers), pieces, strict=True))

    def replace(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return instead[module].clone() if module in instead else inputs[0]  # a copy, for some clip it in place

    with ExitStack() as hooks, inputs_of([writer]) as inputs:
        for module in (*instead, *skipped):
            hooks.enter_context(module.register_forward_hook(replace))
        call()
    return inputs[0]


def _module(linear: Linear) -> nn.Module:
    return getattr(linear, "module", linear)


def _called(block: Block, name: str, signal: Tensor, context: dict) -> Callable:
    """A call of a module inside a block, on a signal that doesn't matter."""
    residual = {block.residual: signal.new_zeros(())} if block.residual else {}
    return partial(block.get_submodule(name), signal, **residual, **context)


def _random(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)
