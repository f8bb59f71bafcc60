"""Every symmetry of a transformer, the changes of its weights that leave what it computes unchanged.

Theorem 1 is the best known. Each class is one symmetry: its theorem, group and use, where it acts (`places`, which
`anatomy` finds), its free parameters there, a random element, and what that does to the weights. All of them act on a
fused network in float64. Matrices have a row for each output: a query is W_q x.
"""

from itertools import accumulate

import torch
from torch import Generator, Tensor

from ..architecture.heads import SharingHead
from ..architecture.linears import ExpertsReader, Router, set_linear
from ..fusion import scale_output
from ..rotation import fold_embedding, fold_reader, fold_writer, linear_map, random_orthogonal
from .anatomy import attentions, mlps
from .places import Symmetry, exchange

CLIPPED = "queries, keys and values are clipped, which commutes with permutations and signs alone"
SHARED = "the head shares the embedding's matrix"


def factors(count: int, generator: Generator) -> Tensor:
    """Random positive numbers between 0.6 and 1.7."""
    return (torch.rand(count, generator=generator, dtype=torch.float64) - 0.5).exp()


def invertible(size: int, generator: Generator) -> Tensor:
    """A random element of GL(size) whose singular values are such factors: far from singular."""
    left, right = random_orthogonal(size, generator), random_orthogonal(size, generator)
    return left * factors(size, generator) @ right


class SignalRotation(Symmetry):
    """RMSNorm(X Q) Q^T = RMSNorm(X) (eq. 2, theorem 1). At an adapter the basis may change: S <- Q^T S Q' (3.3).

    LayerNorm itself, before fusion, commutes only with the Q that keep the vector of ones: O(D - 1).
    """

    name, group, use = "signal rotation", "O(D)", "SliceGPT, QuaRot, SpinQuant"

    @staticmethod
    def bases(net) -> tuple[list[int], dict[int, int]]:
        """The number of each boundary's basis, which changes at an adapter; the width of each basis that may turn."""
        numbers = [*accumulate((block.adapter is not None for block in net.blocks), initial=0)]
        widths = dict(zip(numbers, net.widths, strict=True))
        fixed = {numbers[0], numbers[-1]} if isinstance(net.head, SharingHead) else ()
        return numbers, {number: k for number, k in widths.items() if number not in fixed}

    def freedom(self, net):
        widths = self.bases(net)[1].values()
        return sum(k * (k - 1) // 2 for k in widths) if widths else f"{SHARED}, and so its basis"

    def element(self, net, generator):
        numbers, widths = self.bases(net)
        turned = {number: random_orthogonal(k, generator) for number, k in widths.items()}
        unturned = [torch.eye(k, dtype=torch.float64) for k in net.widths]
        return [turned.get(number, eye) for number, eye in zip(numbers, unturned, strict=True)]

    def act(self, net, rotations):
        if not isinstance(net.head, SharingHead):
            for embedding in net.embeddings:
                fold_embedding(embedding, rotations[0])
            fold_reader(net.head, rotations[-1])
        for block, Q, Q_next in zip(net.blocks, rotations[:-1], rotations[1:], strict=True):
            for linear in block.w_in:
                fold_reader(linear, Q)
            for linear in block.w_out:
                fold_writer(linear, Q_next)
            if block.adapter is not None:
                S = block.adapter(torch.eye(len(Q), dtype=torch.float64))
                block.adapter = linear_map(Q.T @ S @ Q_next, like=next(block.parameters()))


class SignalScale(Symmetry):
    """RMSNorm(c X) = RMSNorm(X) if its eps becomes c^2 eps; with the trained eps, up to eps D / ||x||^2."""

    name, group, use = "scale of the signal", "positive numbers", "a signal that fits into float16"

    def freedom(self, net):
        return 1

    def element(self, net, generator):
        return factors(1, generator).item()

    def act(self, net, c):
        for embedding in net.embeddings:
            embedding.weight *= c
        for linear in [linear for block in net.blocks for linear in block.w_out]:
            scale_output(linear, c)
        for norm in net.norms:
            norm.eps *= c**2
        for name, parameter in net.head.named_parameters():
            if name in ("alpha", "beta", "H"):  # of a head whose matrix, the embedding's, is c times as large now
                parameter /= c


class HeadConstant(Symmetry):
    """W_head <- W_head + 1 c^T: all logits of a token change by the same number, which softmax doesn't see."""

    name, group, use = "constant in all rows of the head", "R^D", "centring heads, to compare them"
    of_logits = False

    def freedom(self, net):
        return SHARED if isinstance(net.head, SharingHead) else net.head.in_features

    def element(self, net, generator):
        return net.head.weight.std() * torch.randn(net.head.in_features, generator=generator, dtype=torch.float64)

    def act(self, net, c):
        net.head.weight += c


class ValueOutput(Symmetry):
    """W_v <- R W_v, O <- O R^-1: attention takes a mean of the values, and O is linear in it (MoDeGPT, 2024)."""

    name, group, use = "value-output", "GL(head) for each key-value head", "low-rank attention (MoDeGPT), QuaRot"

    places = staticmethod(attentions)

    def freedom(self, attention):
        return CLIPPED if attention.clips else len(attention.groups) * attention.size**2

    def element(self, attention, generator):
        return [invertible(attention.size, generator) for _ in attention.groups]

    def act(self, attention, matrices):
        for group, R in zip(attention.groups, matrices, strict=True):
            group.value.multiply(R)
            for head in group.heads:
                head.output.multiply(torch.linalg.inv(R).T)


class QueryKey(ValueOutput):
    """k <- G k, q <- G^-T q leaves every q^T R_t k if G commutes with the R_t of RoPE (Su et al. 2021).

    RoPE turns each pair of dimensions at another speed, so G is a scaled rotation of each pair, and any matrix for the
    dimensions that aren't turned: for all of them, without RoPE. A norm of queries and keys lets only a factor pass,
    one for each pair and each other dimension, from the scale of one norm to the other's.
    """

    name, group, use = "query-key", "GL(head), or what RoPE commutes with", "low-rank attention (MoDeGPT)"

    def freedom(self, attention):
        pairs, others = len(attention.pairs), len(attention.unturned)
        free = self.count(attention) * (pairs + others if attention.norms else 2 * pairs + others**2)
        return CLIPPED if attention.clips else free

    @staticmethod
    def count(attention) -> int:
        """The number of independent G: one for each key-value head, unless all have one norm."""
        return min(map(len, attention.norms)) if attention.norms else len(attention.groups)

    def element(self, attention, generator):
        return [self.commuting(attention, generator) for _ in range(self.count(attention))]

    @staticmethod
    def commuting(attention, generator: Generator) -> Tensor:
        """One G."""
        (i, j), others, G = attention.pairs.T, attention.unturned, factors(attention.size, generator).diag()
        G[j, j] = G[i, i]
        if not attention.norms:
            angle = 6 * factors(len(i), generator)
            G[i, j], G[j, i] = -G[i, i] * angle.sin(), G[i, i] * angle.sin()
            G[i, i] = G[j, j] = G[i, i] * angle.cos()
            G[others[:, None], others] = invertible(len(others), generator)
        return G

    def act(self, attention, matrices):
        heads = [head for group in attention.groups for head in group.heads]
        read = [head.query for head in heads], [group.key for group in attention.groups]
        queries, keys = attention.norms or read
        for parts, to_use in ((queries, lambda G: torch.linalg.inv(G).T), (keys, lambda G: G)):
            for index, part in enumerate(parts):
                part.multiply(to_use(matrices[index * len(matrices) // len(parts)]))


class KeyConstant(ValueOutput):
    """k <- k + b: all scores of a query change by the same q^T b, which softmax doesn't see.

    RoPE turns b by the key's position, so b has only the dimensions that it doesn't turn. `places` adds zero biases.
    """

    name, group, use = "constant added to all keys", "R^(dimensions without RoPE)", "keys without biases (BEiT)"

    def places(self, net):
        for linear in [linear for block in net.blocks if block.attention is not None for linear in block.w_in]:
            if linear.bias is None and not isinstance(linear, (Router, ExpertsReader)):
                set_linear(linear, linear.weight, linear.weight.new_zeros(linear.out_features))
        return super().places(net)

    def freedom(self, attention):
        if attention.clips:
            return CLIPPED
        if attention.has_sinks:
            return "softmax compares the keys with a sink, which stays"
        if attention.norms:
            return "a norm stands between W_k and the score"
        free = len(attention.groups) * len(attention.unturned)
        return free or "RoPE turns the constant by each key's position"

    def element(self, attention, generator):
        b = torch.randn(len(attention.groups), attention.size, generator=generator, dtype=torch.float64)
        b[:, attention.pairs.flatten()] = 0
        return b

    def act(self, attention, constants):
        for group, b in zip(attention.groups, constants, strict=True):
            group.key.tensors[-1][group.key.numbers] += b


class HeadOrder(ValueOutput):
    """Key-value heads may change places, and so may the heads that share one: W_out sums over heads."""

    name, group, use = "order of heads", "S(key-value heads), S(heads of each)", "pruning and merging of heads"

    def freedom(self, attention):
        return "ALiBi gives each head another slope" if attention.has_slopes else 0

    def element(self, attention, generator):
        inside = [torch.randperm(len(group.heads), generator=generator).tolist() for group in attention.groups]
        return torch.randperm(len(attention.groups), generator=generator).tolist(), inside

    def act(self, attention, orders):
        order, inside = orders
        exchange([[group.key, group.value, *group.others] for group in attention.groups], order)
        heads = [[[head.query, head.output, *head.others] for head in group.heads] for group in attention.groups]
        for members, new_order in zip(heads, inside, strict=True):
            exchange(members, new_order)
        for members in zip(*heads, strict=True):
            exchange(members, order)


class NeuronOrder(Symmetry):
    """The neurons of an MLP may change places: W_out sums over neurons (Hecht-Nielsen 1990)."""

    name, group, use = "order of neurons", "S(neurons)", "pruning and merging of neurons"

    places = staticmethod(mlps)

    def freedom(self, neurons):
        return 0 if neurons.alike else "weights stand between the neurons and W_out, another one for each"

    def element(self, neurons, generator):
        return torch.randperm(neurons.count, generator=generator)

    def act(self, neurons, order):
        for part in (*neurons.made, neurons.read):
            part.reorder(order)


class NeuronScaling(NeuronOrder):
    """sigma(c x) = c^p sigma(x): p = 1 for ReLU, 2 for its square, if c > 0 (Neyshabur et al. 2015).

    A gated neuron sigma(gate) * up is linear in `up`, so c may be negative. GELU and SiLU grow by no power.
    """

    name, group, use = "scales of neurons", "c > 0, or c != 0 with a gate", "before quantization (Nagel 2019, AWQ 2023)"

    def freedom(self, neurons):
        return len(neurons.scalable) * neurons.count or "its neurons don't scale with their inputs, as ReLU's do"

    def element(self, neurons, generator):
        signs = torch.randn(neurons.count, generator=generator).sign()
        return [factors(neurons.count, generator) * (signs if part.signed else 1) for part in neurons.scalable]

    def act(self, neurons, scales):
        for part, c in zip(neurons.scalable, scales, strict=True):
            part.rows.scale(c)
            neurons.read.scale(c**-part.power)


class ExpertOrder(Symmetry):
    """The experts of a mixture may change places, together with the router's rows and its corrections."""

    name, group, use = "order of experts", "S(experts)", "pruning and merging of experts"

    def places(self, net):
        if (getattr(net.model.config, "n_group", None) or 1) > 1:
            raise ValueError("the router chooses groups of experts, and then experts inside them")
        return [block for block in net.blocks if block.is_mixture]

    def element(self, block, generator):
        return torch.randperm(block.experts.num_experts, generator=generator)

    def act(self, block, order):
        router = next(linear for linear in block.w_in if len(linear.weight) == len(order))
        for module in (block.mlp, block.experts, *getattr(router, "module", router).modules()):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if len(order) in tensor.shape:
                    tensor.copy_(tensor.index_select(tensor.shape.index(len(order)), order))


KINDS = (SignalRotation, SignalScale, HeadConstant, ValueOutput, QueryKey, KeyConstant, HeadOrder, NeuronOrder)
SYMMETRIES: tuple[Symmetry, ...] = tuple(kind() for kind in (*KINDS, NeuronScaling, ExpertOrder))
