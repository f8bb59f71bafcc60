"""The facts about a block's inner side (`beyond.neurons`, `beyond.inner`), in the manner of `properties.py`."""

import copy
from dataclasses import replace
from itertools import combinations
from unittest.mock import patch

import torch
from models import Recipe
from properties import EXACT, assert_same_logits, fused, relative_error, sliced
from torch import Tensor

from minislice import fuse
from minislice.architecture.blocks import Block
from minislice.architecture.linears import ExpertsWriter, set_linear
from minislice.architecture.network import inference, network
from minislice.beyond import experts, fisher, inner, reconstruction
from minislice.beyond.inner import moments, refit
from minislice.beyond.neurons import delete_neurons, least_harmful, solve_block, solve_output
from minislice.beyond.predictions import divergences, log_probabilities, logits_behind
from minislice.beyond.walk import Walk
from minislice.calibration import Calibration
from minislice.corpus.batches import Batch, token_batches
from minislice.rotation import fold_reader

RIDGE = 1e-2
DRAWS = 150  # of the loss's targets
RANDOM = slice(0, 8)  # of the ten inner dimensions of a random case, those that may be deleted


def random_case(recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """H [tokens, 10], correlated and of different sizes; W [10, 4]; and what is lacking behind the block."""
    generator = torch.Generator().manual_seed(recipe.seed)
    mixed = torch.randn(10, 10, generator=generator) * torch.logspace(-1, 1, 10)
    H, W = torch.randn(30, 10, generator=generator) @ mixed, torch.randn(10, 4, generator=generator)
    return H.double(), W.double(), torch.randn(30, 4, generator=generator).double()


def ridge_of(H: Tensor) -> float:
    """What the share RIDGE is of."""
    return RIDGE * (H.T @ H).diagonal().mean().item()


def lost(H: Tensor, W: Tensor, kept: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The least that is lost with these inner dimensions alone, lambda's share included; and the W that loses it.

    An ordinary least-squares solution, of H and below it sqrt(lambda) I.
    """
    kept, root = list(kept), ridge_of(H) ** 0.5
    A, target = torch.cat([H, root * torch.eye(10).double()]), torch.cat([H @ W, root * W])
    best = torch.linalg.lstsq(A[:, kept], target).solution
    return (A[:, kept] @ best - target).square().sum(), best


def nearly_the_best_of_all_subsets_is_kept(recipe: Recipe) -> None:
    """Deleting one of eight loses the least of all; three, at most half as much again as the best of all 56 cases."""
    H, W, _ = random_case(recipe)
    for delete, most in ((1, 1 + 1e-9), (3, 1.5)):
        kept, _ = least_harmful(H.T @ H, W, delete, RANDOM, RIDGE)
        cases = [tuple(sorted({*range(10)} - {*gone})) for gone in combinations(range(RANDOM.stop), delete)]
        assert lost(H, W, tuple(kept.tolist()))[0] <= most * min(lost(H, W, case)[0] for case in cases)


def solved_output_is_least_squares(recipe: Recipe, delete: int = 4) -> None:
    """W_out is the best for what is kept, so it is never worse than plain deletion; and its cost is known."""
    H, W, _ = random_case(recipe)
    rounds: list[float] = []
    kept, solved = least_harmful(H.T @ H, W, delete, RANDOM, RIDGE, rounds)
    least, best = lost(H, W, tuple(kept.tolist()))
    assert relative_error(solved, best) <= 1e-8
    assert abs(sum(rounds) - least) <= 1e-8 * least.abs() + 1e-12
    assert (H @ W - H[:, kept] @ solved).square().sum() <= (H @ W - H[:, kept] @ W[kept]).square().sum() + 1e-12


def refit_is_least_squares(recipe: Recipe) -> None:
    """What is added to W_out is the ridge solution for what is lacking."""
    H, _, lacking = random_case(recipe)
    root = ridge_of(H) ** 0.5
    A = torch.cat([H, root * torch.eye(10).double()])
    best = torch.linalg.lstsq(A, torch.cat([lacking, torch.zeros(10, 4).double()])).solution
    assert relative_error(refit(H.T @ H, H.T @ lacking, RIDGE), best) <= 1e-8


def moments_are_weighted_sums(recipe: Recipe) -> None:
    """C and B are sums over tokens, each weighted by the mean square of the signal that is wanted, without padding."""
    H, W, lacking = random_case(recipe)
    X, scale = H @ W + lacking, torch.logspace(-2, 2, 30).double()[:, None]
    X, Y, mask = X * scale, H @ W * scale, torch.arange(30) % 5 > 0
    C = B = 0
    for h, x, y in zip(H[mask], X[mask], Y[mask], strict=True):
        C = C + torch.outer(h, h) / x.square().mean()
        B = B + torch.outer(h, x - y) / x.square().mean()
    total = moments(H[:20], Y[:20], X[:20], mask[:20])
    total = moments(H[20:], Y[20:], X[20:], mask[20:], add_to=total)
    assert relative_error(total, torch.cat([C, B], dim=1)) <= EXACT


def idle_neurons_can_go(recipe: Recipe, **options) -> None:
    """Where half of the neurons of an MLP have no weight in W_out, deleting half changes nothing.

    In the sliced network if `slicing` is among the options, else in the trained one, which isn't fused.
    """
    dense = recipe.model()
    generator = torch.Generator().manual_seed(recipe.seed)
    checked = 0
    for block in network(dense).blocks:
        writers = [block.mlp_linears.writer.weight.data] if block.mlp_linears else []
        if block.is_mixture:
            writers = [*ExpertsWriter(block.experts).matrices().data]
        for weight in writers:
            idle = torch.randperm(block.neurons, generator=generator)[: block.neurons // 2]
            weight[:, idle] = 0
            checked += len(idle)
    assert checked > 0
    model = copy.deepcopy(dense)
    if "slicing" in options:
        sliced(recipe, model, neurons=0.5, multiple=1, **options)
    else:
        delete_neurons(model, recipe.tokens(), recipe.mask(), neurons=0.5, multiple=1, **options)
    assert all(2 * block.neurons == trained.neurons for block, trained in mlps(model, dense))
    assert_same_logits(model, dense, recipe, 1e-4 if recipe.norm_in_float32 else 1e-8)


def mlps(model, dense) -> list:
    pairs = zip(network(model).blocks, network(dense).blocks, strict=True)
    return [(block, trained) for block, trained in pairs if trained.neurons]


def experts_moments_are_weighted_sums(recipe: Recipe) -> None:
    """Each expert's C is a sum over the tokens that it gets, weighted by the router and by the signal behind the block.

    A W_out that shows one neuron and nothing else has the whole mixture say what an expert makes of a token.
    """
    net = network(fused(recipe))
    held = Calibration(token_batches(net.model, recipe.tokens(), recipe.mask(), 4))
    with inference(net.model):
        Z = held.embed(net)
        Z = held.forward(net.blocks[0], Z)
        block, context, [batch] = net.blocks[1], held.contexts[0][0], held.batches
        C, _ = experts.block_moments(Walk(held, Z), block)
        y = block.branch(Z[0], **context) + Z[0]
        weight = y.square().mean(-1).rsqrt()
        weight = weight if batch.mask is None else weight * batch.mask
        writer = ExpertsWriter(block.experts)
        trained, silent = writer.matrices().clone(), block.branch(Z[0], **context)
        for expert in range(len(C)):
            H = []
            for neuron in range(block.neurons):
                changed = trained.clone()
                changed[expert, :, neuron] += 1.0  # every column of the output gets g h
                writer.store_matrices(changed)
                H.append((block.branch(Z[0], **context) - silent).mean(-1))
            H = (torch.stack(H, dim=-1) * weight[..., None]).flatten(0, 1)
            own = C[expert, : block.neurons, : block.neurons]
            assert relative_error(own, H.T @ H) <= 1e-6
        writer.store_matrices(trained)


def experts_keep_what_is_best_for_each(recipe: Recipe) -> None:
    """Each expert loses neurons of its own choice, and the same as it would alone; its W_out is solved for."""
    block = network(fused(recipe)).blocks[1]
    generator = torch.Generator().manual_seed(recipe.seed)
    W = experts.output_matrix(block)
    H = torch.randn(len(W), 60, W.shape[1], generator=generator).double()
    H = H * torch.rand(len(W), 1, W.shape[1], generator=generator).double()
    count = block.neurons
    kept, solved = solve_output(block, H.mT @ H, None, count // 2)
    experts.keep_inner(block, kept, solved)
    assert relative_error(experts.output_matrix(block), solved) <= EXACT
    for own, new, h, w in zip(kept, solved, H, W, strict=True):
        alone, best = least_harmful(h.T @ h, w, count // 2, slice(count))
        assert torch.equal(own, alone) and relative_error(new, best) <= 1e-8
    assert len({tuple(own.tolist()) for own in kept}) > 1


def nothing_lost_is_nothing_repaired(recipe: Recipe, **options) -> None:
    """At full width the dense network's signal is the sliced one's: repair leaves the logits as they are."""
    model = sliced(recipe, slicing=0, repair=True, **options)
    assert_same_logits(model, recipe.model(), recipe, 1e-5 if recipe.norm_in_float32 else 1e-8)


@torch.no_grad()
def cut_signal(recipe: Recipe, width: int, place: int, batch_size: int) -> tuple[Walk, Block]:
    """A walk that has reached a block of the first layer with a cut signal, and the block."""
    net, P = network(fused(recipe)), torch.eye(recipe.width).double()[:, :width]
    held = Calibration(token_batches(net.model, recipe.tokens(), recipe.mask(), batch_size))
    blocks = [block for block in net.layers[0].blocks if not block.is_mixture]
    *before, block = blocks[: place % len(blocks) + 1]
    X = held.embed(net)
    for earlier in before:
        X = held.forward(earlier, X)
    wanted = held.forward(block, X)
    for linear in block.w_in:
        fold_reader(linear, P)
    return Walk(held, held.project(X, P), P, wanted), block


@torch.no_grad()
def missing(walk: Walk, block: Block) -> list[float]:
    """Of each batch, the share of the wanted signal that is missing, summed over its tokens but padding."""
    shares, held = [], walk.calibration
    for z, x, batch, contexts in zip(walk.Z, walk.dense, held.batches, held.contexts, strict=True):
        share = (x - z @ walk.P.T - block.branch(z, **contexts[0])).square().mean(-1) / x.square().mean(-1)
        shares.append((share if batch.mask is None else share[batch.mask]).sum().item())
    return shares


@torch.no_grad()
def repair_brings_the_signal_nearer(recipe: Recipe, width=None, place=0) -> None:
    """Behind a block that reads a cut signal, W_out solved again is nearer to the dense network's."""
    walk, block = cut_signal(recipe, width or max(1, recipe.width // 2), place, 3)
    before = sum(missing(walk, block))
    inner.keep_inner(block, *solve_output(block, *inner.block_moments(walk, block), 0, True))
    assert sum(missing(walk, block)) < before or walk.P.shape[1] == recipe.width


def errors(recipe: Recipe, reconstruct: bool) -> tuple[float, float]:
    """Behind the first block, read from a cut signal, its error on three batches that are learned from, and held out.

    Padding doesn't count; the last of four batches is held out.
    """
    walk, block = cut_signal(recipe, recipe.width // 2, 0, batch_size=1)
    with torch.no_grad():
        learned, _ = (walk, None) if reconstruct else walk.split(8)
        solve_block(learned, block, block.neurons // 4, reconstruct)
    *learned_from, held_out = missing(walk, block)
    return sum(learned_from), held_out


def held_out_error_never_grows(recipe: Recipe) -> None:
    """Reconstruction of a block is never worse on what is held out; its error is what is missing, token by token."""
    assert errors(recipe, True)[1] <= errors(recipe, False)[1] * (1 + 1e-9)
    seen: list[float] = []
    watch = lambda parameters, of_batches: seen.extend(error().item() for error in of_batches) or ()  # noqa: E731
    with patch.object(reconstruction, "descend", watch):
        learned, _ = errors(recipe, True)
    tokens = torch.tensor(recipe.lengths()[: len(seen)])
    assert abs((torch.tensor(seen) @ tokens.float()).item() / learned - 1) <= 1e-5


def what_is_learned_comes_nearer(recipe: Recipe) -> None:
    """What is held out is learned from here: random text has nothing to learn for another."""
    split = Walk.split
    with patch.object(Walk, "split", lambda walk, each: [split(walk, each)[0]] * 2):
        assert errors(recipe, True)[0] < 0.9 * errors(recipe, False)[0]


def information(model, tokens, mask=None, batch_size=4, processes=1) -> list:
    """G of each block with neurons, summed over so many processes."""
    net, batches = network(model), token_batches(model, tokens, mask, batch_size)
    shares = [fisher.information(net, Calibration(batches[index::processes])) for index in range(processes)]
    return [sum(share[block] for share in shares) for block in net.blocks if block.neurons]


def a_sum_of_outer_products(recipe: Recipe) -> None:
    """Of single sequences without their padding, by transformers' own layers, whose last block has the neurons."""
    model, expected = recipe.model(), 0.0
    mask = torch.ones_like(recipe.tokens()) if recipe.mask() is None else recipe.mask()
    found = torch.stack(information(model, recipe.tokens(), recipe.mask()))
    outputs = [None] * recipe.layers
    for place, layer in enumerate(network(model).their_layers):
        layer.register_forward_hook(lambda module, args, output, place=place: outputs.__setitem__(place, output))
    for number, row in enumerate(recipe.tokens()):
        p = model(input_ids=row[mask[number] > 0][None]).logits[0, :-1].softmax(-1)
        targets = torch.multinomial(p.detach(), 1, generator=torch.Generator().manual_seed(number))
        for output in outputs:
            output.retain_grad()
        p.gather(1, targets).log().sum().backward()
        for g in torch.stack([output.grad[0] for output in outputs], dim=1):
            expected = expected + g[:, :, None] * g[:, None]
    assert relative_error(found, expected) <= 1e-6
    metrics = fisher.fisher_metrics(network(model), Calibration(token_batches(model, recipe.tokens(), mask, 4)))
    for G, M in zip(found, metrics.values(), strict=True):
        assert relative_error(M, 0.97 * G / G.diagonal().mean() + 0.03 * torch.eye(len(G)).double()) <= EXACT


def twice_the_divergence(recipe: Recipe) -> None:
    """A small change v of a block's output at one token after the other: the divergences add up to v G v^T / 2."""
    model, ids, size = recipe.model(), recipe.tokens()[:1, :6], 1e-3
    net, v = network(model), torch.randn(recipe.width, generator=torch.Generator().manual_seed(recipe.seed)).double()
    with patch.object(fisher, "SEQUENCES", DRAWS):
        found = information(model, ids.expand(DRAWS, -1))
    with inference(model):
        batch, each = Batch(ids.expand(7, -1), None, 0), range(6)  # the last one stays as it is
        x, contexts = net.embed(batch.ids)
        for place, (G, layer) in enumerate(zip(found, net.layers, strict=True), 1):
            for block in layer.blocks:
                x = block(x, **contexts[place - 1])
            changed = x.clone()
            changed[each, each] += size * v
            log_p = log_probabilities(logits_behind(net, place * len(layer.blocks), changed, contexts, batch), batch)
            total = divergences(log_p[-5:].repeat(6, 1), log_p[:-5]).sum() / size**2
            assert abs(v @ G @ v / DRAWS / 2 / total - 1) <= 0.2


def directions_count_by_the_metric(recipe: Recipe) -> None:
    """The neuron goes first whose output costs least in the metric; in the identity, the same as without a metric."""
    H, W, _ = random_case(recipe)
    A = torch.linalg.inv(ridge_of(H) * torch.eye(10) + H.T @ H)
    M = torch.diag(torch.tensor([1e4, 1.0, 1.0, 1e-4], dtype=torch.float64))
    kept, _ = least_harmful(H.T @ H, W, 1, RANDOM, metric=M)
    assert min(range(RANDOM.stop), key=lambda i: W[i] @ M @ W[i] / A[i, i]) not in kept
    alike = [least_harmful(H.T @ H, W, 4, RANDOM, metric=metric) for metric in (None, torch.eye(4).double())]
    assert torch.equal(alike[0][0], alike[1][0]) and relative_error(alike[0][1], alike[1][1]) <= 1e-12


def silenced(model, numbers: list[int]):
    """A copy whose blocks of these numbers write nothing."""
    model = copy.deepcopy(model)
    for linear in [linear for number in numbers for linear in network(model).blocks[number].w_out]:
        set_linear(linear, torch.zeros_like(linear.weight), None if linear.bias is None else 0 * linear.bias)
    return model


def dropped_block_adds_nothing(recipe: Recipe, **options) -> None:
    """A network without a block computes what the whole one does where that block writes nothing."""
    recipe = replace(recipe, layers=max(2, recipe.layers))
    net = network(recipe.model())
    optional = [number for number in range(len(net.blocks)) if number not in net.needed_by_cache]
    number = optional[recipe.seed % len(optional)]
    model = sliced(recipe, slicing=0, drop=[number], **options)
    assert network(model).dropped == [number]
    assert_same_logits(model, fuse(silenced(net.model, [number])), recipe, 1e-8)
