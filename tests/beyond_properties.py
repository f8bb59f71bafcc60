"""The facts about what minislice does beyond the paper (`minislice/beyond`), in the manner of `properties.py`."""

import copy
import itertools
import math
import tempfile
from dataclasses import replace
from unittest.mock import patch

import torch
from models import VOCABULARY, Recipe
from properties import EXACT, assert_same_logits, cached_generation_equals_uncached, fused, relative_error, sliced
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from minislice import compress, fuse, parameters, perplexity, plan_compression, slice_model
from minislice.architecture.blocks import Block
from minislice.architecture.linears import ExpertsWriter, set_linear
from minislice.architecture.network import inference, network
from minislice.beyond import fisher, inner, reconstruction
from minislice.beyond.budget import Part, cheapest, cost_of, size_of, tables_of
from minislice.beyond.depth import delete_layers, losses_without_each
from minislice.beyond.inner import Walk, moments, refit
from minislice.beyond.neurons import delete_neurons, least_harmful, solve_block, solve_output
from minislice.beyond.rulers import LEAST, PROBE, Cost, Prices, block_costs, divergences, predictions
from minislice.calibration import Calibration
from minislice.corpus.batches import Batch, token_batches
from minislice.likelihood import predicting, prediction_losses
from minislice.rotation import fold_reader

RIDGE = 1e-2
DRAWS = 150  # of the loss's targets
RANDOM = slice(0, 8)  # of the ten inner dimensions of a random case, those that may be deleted
SLACK = 500  # of a random budget: more than the 8 neurons of any block there


def random_case(recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """H [tokens, 10], correlated and of different sizes; W [10, 4]; and what is lacking after the block."""
    generator = torch.Generator().manual_seed(recipe.seed)
    mixed = torch.randn(10, 10, generator=generator) * torch.logspace(-1, 1, 10)
    H, W = torch.randn(30, 10, generator=generator) @ mixed, torch.randn(10, 4, generator=generator)
    return H.double(), W.double(), torch.randn(30, 4, generator=generator).double()


def ridge_of(H: Tensor) -> float:
    """lambda: RIDGE times the mean of the diagonal of H^T H."""
    return RIDGE * (H.T @ H).diagonal().mean().item()


def lost(H: Tensor, W: Tensor, kept: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The least loss with these inner dimensions alone, lambda's share included; and the W that has it."""
    kept, root = list(kept), ridge_of(H) ** 0.5
    A, target = torch.cat([H, root * torch.eye(10).double()]), torch.cat([H @ W, root * W])
    best = torch.linalg.lstsq(A[:, kept], target).solution
    return (A[:, kept] @ best - target).square().sum(), best


def nearly_the_best_of_all_subsets_is_kept(recipe: Recipe) -> None:
    """Deleting one of eight loses the least of all; three, at most half as much again as the best of all 56 cases."""
    H, W, _ = random_case(recipe)
    for delete, most in ((1, 1 + 1e-9), (3, 1.5)):
        kept, _ = least_harmful(H.T @ H, W, delete, RANDOM, RIDGE)
        cases = [tuple(sorted({*range(10)} - {*gone})) for gone in itertools.combinations(range(RANDOM.stop), delete)]
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
    """Each expert's C is a sum over the tokens that it gets, weighted by the router and by the signal after the block.

    A W_out that shows one neuron and nothing else has the whole mixture say what an expert makes of a token.
    """
    net = network(fused(recipe))
    held = Calibration(token_batches(net.model, recipe.tokens(), recipe.mask(), 4))
    with inference(net.model):
        Z = held.embed(net)
        Z = held.forward(net.blocks[0], Z)
        block, context, [batch] = net.blocks[1], held.contexts[0][0], held.batches
        C, _ = inner.block_moments(Walk(held, Z), block)
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
            assert relative_error(C[expert, : block.neurons, : block.neurons], H.T @ H) <= 1e-6
        writer.store_matrices(trained)


def experts_keep_what_is_best_for_each(recipe: Recipe) -> None:
    """Each expert loses neurons of its own choice, and the same as it would alone; its W_out is solved for."""
    block = network(fused(recipe)).blocks[1]
    generator = torch.Generator().manual_seed(recipe.seed)
    W = inner.output_matrix(block)
    H = torch.randn(len(W), 60, W.shape[1], generator=generator).double()
    H = H * torch.rand(len(W), 1, W.shape[1], generator=generator).double()
    count = block.neurons
    kept, solved = solve_output(block, H.mT @ H, None, count // 2)
    inner.keep_inner(block, kept, solved)
    assert relative_error(inner.output_matrix(block), solved) <= EXACT
    for neurons, W_new, h, w in zip(kept, solved, H, W, strict=True):
        alone, best = least_harmful(h.T @ h, w, count // 2, slice(count))
        assert torch.equal(neurons, alone) and relative_error(W_new, best) <= 1e-8
    assert len({tuple(neurons.tolist()) for neurons in kept}) > 1


def nothing_lost_is_nothing_repaired(recipe: Recipe, **options) -> None:
    """At full width the dense network's signal is the sliced one's: repair leaves the logits as they are."""
    model = sliced(recipe, slicing=0, repair=True, **options)
    assert_same_logits(model, recipe.model(), recipe, 1e-5 if recipe.norm_in_float32 else 1e-8)


@torch.no_grad()
def cut_signal(recipe: Recipe, place: int, batch_size: int) -> tuple[Walk, Block]:
    """A walk that has reached a block of the first layer with half of the signal, and the block."""
    net, P = network(fused(recipe)), torch.eye(recipe.width).double()[:, : recipe.width // 2]
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
    """For each batch, the share of the wanted signal that is missing, summed over its tokens without padding."""
    shares, held = [], walk.calibration
    for z, x, batch, contexts in zip(walk.Z, walk.dense, held.batches, held.contexts, strict=True):
        share = (x - z @ walk.P.T - block.branch(z, **contexts[0])).square().mean(-1) / x.square().mean(-1)
        shares.append((share if batch.mask is None else share[batch.mask]).sum().item())
    return shares


@torch.no_grad()
def repair_brings_the_signal_nearer(recipe: Recipe, place=0) -> None:
    """Behind a block that reads a cut signal, W_out solved again is nearer to the dense network's."""
    walk, block = cut_signal(recipe, place, batch_size=3)
    before = sum(missing(walk, block))
    inner.keep_inner(block, *solve_output(block, *inner.block_moments(walk, block), 0))
    assert sum(missing(walk, block)) < before


def errors(recipe: Recipe, reconstruct: bool) -> tuple[float, float]:
    """The error after a first block that reads a cut signal: on three batches that it learns from, and held out."""
    walk, block = cut_signal(recipe, 0, batch_size=1)
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
    """Here the part that is held out is the part that is learned from: random text teaches nothing about other text."""
    split = Walk.split
    with patch.object(Walk, "split", lambda walk, each: [split(walk, each)[0]] * 2):
        assert errors(recipe, True)[0] < 0.9 * errors(recipe, False)[0]


def information(model, tokens, mask=None, batch_size=4, processes=1) -> list:
    """G of each block with neurons, summed over this many processes."""
    net, batches = network(model), token_batches(model, tokens, mask, batch_size)
    shares = [fisher.information(net, Calibration(batches[index::processes])) for index in range(processes)]
    return [sum(share[block] for share in shares) for block in net.blocks if block.neurons]


def a_sum_of_outer_products(recipe: Recipe) -> None:
    """Of the gradients of single sequences without padding, after layers whose last block has the neurons."""
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
            logits = net.logits(place * len(layer.blocks), changed, contexts, batch.ids)
            log_p = predicting(logits, batch)[0].log_softmax(-1)
            total = divergences(log_p[-5:].repeat(6, 1), log_p[:-5]).sum() / size**2
            assert abs(v @ G @ v / DRAWS / 2 / total - 1) <= 0.2


def directions_count_by_the_metric(recipe: Recipe) -> None:
    """The neuron whose output costs least in the metric goes first; the identity chooses as no metric does."""
    H, W, _ = random_case(recipe)
    A = torch.linalg.inv(ridge_of(H) * torch.eye(10) + H.T @ H)
    M = torch.diag(torch.tensor([1e4, 1.0, 1.0, 1e-4], dtype=torch.float64))
    kept, _ = least_harmful(H.T @ H, W, 1, RANDOM, metric=M)
    assert min(range(RANDOM.stop), key=lambda i: W[i] @ M @ W[i] / A[i, i]) not in kept
    alike = [least_harmful(H.T @ H, W, 4, RANDOM, metric=metric) for metric in (None, torch.eye(4).double())]
    assert torch.equal(alike[0][0], alike[1][0]) and relative_error(alike[0][1], alike[1][1]) <= 1e-12


def silenced(model, numbers: list[int]):
    """A copy in which the blocks of these numbers write nothing."""
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


def shortened(recipe: Recipe, layers: int = 1) -> nn.Module:
    return delete_layers(recipe.model(), recipe.tokens(), recipe.mask(), layers=layers, batch_size=3)


def without(model: nn.Module, index: int) -> nn.Module:
    """A copy with a layer that writes nothing: deletion by other means."""
    count = network(model).blocks_per_layer
    return silenced(model, range(index * count, (index + 1) * count))


def a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing(recipe: Recipe) -> None:
    """The partial passes of `losses_without_each`, against whole ones."""
    model, ids, mask = recipe.model(), recipe.tokens(), recipe.mask()
    losses = losses_without_each(network(model), token_batches(model, ids, mask, batch_size=3))
    expected = [math.log(perplexity(without(model, index), ids, mask)) for index in range(recipe.layers)]
    assert relative_error(torch.tensor(losses), torch.tensor(expected)) <= 1e-6
    assert_same_logits(model, recipe.model(), recipe, 0.0)


def each_deleted_layer_hurts_least(recipe: Recipe) -> None:
    """Each time, all layers that are left are tried."""
    model, left = recipe.model(), list(range(recipe.layers))
    shorter = shortened(recipe, layers=recipe.layers - 1)
    for number in shorter.deleted_layers:
        tried = [without(model, index) for index in left]
        losses = [math.log(perplexity(other, recipe.tokens(), recipe.mask())) for other in tried]
        assert losses[left.index(number)] <= min(losses) + 1e-6
        model = tried[left.index(number)]
        left.remove(number)
    assert_same_logits(shorter, model, recipe, EXACT)


def a_shorter_model_is_saved_by_its_own_class(recipe: Recipe) -> None:
    """Transformers reads it again, and it computes the same."""
    model = shortened(recipe).float()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(again) is type(recipe.model()) and again.config.num_hidden_layers == recipe.layers - 1
    assert_same_logits(again, model, recipe, 1e-6)  # a loaded mixture multiplies in another order


def a_shorter_model_generates_the_same_with_a_cache(recipe: Recipe) -> None:
    model = shortened(recipe)
    caches = {module.layer_idx for module in model.modules() if hasattr(module, "layer_idx")}
    assert caches == {*range(recipe.layers - 1)}
    cached_generation_equals_uncached(recipe, model)


def random_cost(neurons: int, generator: torch.Generator) -> Cost:
    dropped, probed, emptied = (torch.rand(3, generator=generator) + 0.02).tolist()
    lost = (torch.rand(min(32, neurons), generator=generator) + 0.1).cumsum(0).tolist()
    return Cost(dropped, neurons, 0.1 * probed * emptied, emptied, tuple(lost)) if neurons else Cost(dropped)


def cost_of_neurons_is_a_power_of_the_energy_lost(recipe: Recipe) -> None:
    """The power that meets both measured costs: a third of the neurons deleted, and all."""
    cost = random_cost(24, torch.Generator().manual_seed(recipe.seed))
    costs = [cost.of(left) for left in range(23, -1, -1)]
    assert cost.of(24) == 0.0 and costs == sorted(costs)
    assert math.isclose(costs[7], cost.probed) and math.isclose(costs[-1], cost.emptied)
    points = zip(costs[:-1], cost.lost[:-1], strict=True)
    powers = [math.log(costs[-1] / value) / math.log(cost.lost[-1] / lost) for value, lost in points]
    assert max(powers) - min(powers) < 1e-6 * max(powers)


def cost_of_a_width_is_a_power_of_the_share_deleted(recipe: Recipe) -> None:
    """The power that meets both measured costs."""
    generator = torch.Generator().manual_seed(recipe.seed)
    low, more = (torch.rand(2, generator=generator) + 0.02).tolist()
    cost = Prices([], {96: 0.0, 84: low, 72: low + more}).of_width
    assert [cost(k) for k in (96, 84, 72)] == [0.0, low, low + more]
    assert math.isclose(cost(48) / cost(72), cost(72) / cost(84))  # each deletes twice as much as the next


def divergence_is_what_is_lost_of_the_log_likelihood(recipe: Recipe) -> None:
    models = recipe.model(), replace(recipe, seed=recipe.seed + 1).model()
    [batch] = token_batches(models[0], recipe.tokens(), recipe.mask(), 4)
    with torch.no_grad():
        logits = [model(batch.ids, attention_mask=recipe.mask()).logits for model in models]
    targets = [replace(batch, ids=torch.full_like(batch.ids, token)) for token in range(VOCABULARY)]
    p, q = (torch.stack([prediction_losses(output, target) for target in targets], dim=1) for output in logits)
    log_p, log_q = (predicting(output, batch)[0].log_softmax(-1) for output in logits)
    found, expected = divergences(log_p, log_q), ((q - p) / p.exp()).sum(1)
    assert found.shape == expected.shape and torch.allclose(found, expected) and found.min() > 0


def measured_costs_are_those_of_whole_models(recipe: Recipe) -> None:
    """The partial passes of `block_costs`, against whole passes of a model in which one block is changed."""
    model = recipe.model()
    calibration, held_out = (token_batches(model, recipe.tokens(seed), recipe.mask(), 4) for seed in (0, 1))
    [batch] = held_out
    with inference(model):
        dense = predictions(model, batch)
    costs = block_costs(network(model), calibration, held_out, [dense])

    def cost_of(changed) -> float:
        with torch.no_grad():
            return divergences(dense, predictions(changed, batch)).mean().item()

    for number, cost in enumerate(costs):
        assert math.isclose(cost.dropped, cost_of(silenced(model, [number])), abs_tol=1e-6)
        assert cost.neurons == network(model).blocks[number].neurons
        for delete, measured in {round(PROBE * cost.neurons): cost.probed, cost.neurons: cost.emptied}.items():
            if delete:
                fewer = cost_of(without_neurons(model, number, delete, calibration))
                assert math.isclose(measured, fewer, abs_tol=1e-6)
    assert all(torch.equal(tensor, recipe.model().state_dict()[name]) for name, tensor in model.state_dict().items())


def without_neurons(model, number: int, delete: int, calibration: list):
    """A copy in which a block has lost this many neurons, its W_out solved for."""
    model = copy.deepcopy(model)
    net, held = network(model), Calibration(calibration)
    with inference(model):
        Z = held.embed(net)
        for index, block in enumerate(net.blocks):
            solve_block(Walk(held, Z), block, delete if index == number else 0)
            Z = held.forward(block, Z)
    return model


def sizes_are_those_of_the_sliced_model(recipe: Recipe) -> None:
    """The size of the whole, of a block that is left out, and of neurons; and costs stand beside them."""
    net, options = network(recipe.model()), {"adapter": "none", "width": recipe.width - 3}
    generator, count = torch.Generator().manual_seed(recipe.seed), [block.neurons for block in net.blocks]
    costs = [random_cost(neurons, generator) for neurons in count]
    elsewhere, tables = tables_of(net, options, costs, 1, range(len(count)))
    for parts, cost in zip(tables, costs, strict=True):
        assert [part.neurons for part in parts] == [*range(cost.neurons + 1), None]
        assert [part.cost for part in parts[:-1]] == [cost.of(part.neurons) for part in parts[:-1]]
        assert parts[-1] == (None, max(cost.dropped, LEAST), 0)
    whole = [parts[n] for parts, n in zip(tables, count, strict=True)]
    model = slice_model(recipe.model(), recipe.tokens(), **options)
    assert elsewhere + size_of(whole) == parameters(model)
    left = [int(torch.randint(0, n + 1, (), generator=generator)) for n in count]
    thinner = [n for n, trained in zip(left, count, strict=True) if trained]
    fewer = slice_model(recipe.model(), recipe.tokens(), neurons=thinner, **options)
    assert elsewhere + size_of(parts[n] for parts, n in zip(tables, left, strict=True)) == parameters(fewer)
    if recipe.layers > 2:  # neither the first block nor the last
        number = 1 + recipe.seed % (len(net.blocks) - 2)
        shorter = slice_model(recipe.model(), recipe.tokens(), drop=[number], **options)
        assert elsewhere + size_of(whole) - whole[number].size == parameters(shorter)
    for parts, n in zip(tables_of(net, options, costs, 8, ())[1], count, strict=True):
        assert [part.neurons for part in parts] == [*range(0, n, 8), n]


def chosen_mixture_is_nearly_the_cheapest(recipe: Recipe) -> None:
    """Among all 625 for four MLPs of 24 neurons, at four sizes; and the size is what was asked for."""
    generator = torch.Generator().manual_seed(recipe.seed)
    each, rest = (torch.randint(*span, (4,), generator=generator).tolist() for span in ((10, 60), (0, 300)))
    costs, tables = [random_cost(24, generator) for _ in each], []
    for cost, neuron, more in zip(costs, each, rest, strict=True):
        parts = [Part(left, cost.of(left), left * neuron + more) for left in (0, 8, 16, 24)]
        tables.append([*parts, Part(None, max(cost.dropped, LEAST), 0)])
    every = [(cost_of(parts), size_of(parts)) for parts in itertools.product(*tables)]
    excesses = []
    for share in (0.4, 0.55, 0.7, 0.85):
        room = share * (500 + sum(parts[3].size for parts in tables)) - 500
        choice = cheapest(tables, room, SLACK)
        assert all(part in parts for part, parts in zip(choice, tables, strict=True))
        assert room - SLACK < size_of(choice) <= room
        excesses.append(cost_of(choice) / min(cost for cost, size in every if size <= room))
    assert sum(excesses) / len(excesses) < 1.5


def plan_says_what_is_left(recipe: Recipe, widths: tuple[float, ...] = (0.8, 0.6)) -> None:
    """The size is within 1% of what was asked for, whatever blocks cost; a cache needs the first attention."""
    model, generator = recipe.model(), torch.Generator().manual_seed(recipe.seed)
    net, D, dense = network(model), recipe.width, parameters(model)
    costs = [random_cost(block.neurons, generator) for block in net.blocks]
    costs[0], costs[-1] = replace(costs[0], dropped=0.0), replace(costs[-1], dropped=0.0)
    known = Prices(costs, {D: 0.0, D - D // 4: 0.1, D // 2: 0.3})
    plan = plan_compression(model, recipe.tokens(), size=0.65, widths=widths, multiple=1, known=known)
    assert 0 not in plan.options["drop"]
    compress(model, recipe.tokens(), plan=plan)
    assert parameters(model) == plan.parameters
    assert 0.64 * dense < plan.parameters <= 0.65 * dense
    assert all(str(count) in str(plan) for count in [*plan.options["neurons"], *plan.options["drop"]])
