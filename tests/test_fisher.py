"""Neurons scored by what they mean to the loss: G by brute force, and as the divergence that it stands for."""

from dataclasses import replace
from pkgutil import resolve_name
from unittest.mock import patch

import pytest
import torch
from family_models import REPRESENTATIVES, fixed
from inner_properties import RANDOM, idle_neurons_can_go, random_case, ridge_of
from models import Recipe
from properties import relative_error

import minislice
from minislice.architecture.network import inference, network
from minislice.beyond import fisher
from minislice.beyond.neurons import least_harmful
from minislice.calibration import Calibration
from minislice.corpus.batches import Batch, token_batches
from minislice.likelihood import divergences, log_probabilities, logits_behind

DRAWS = 150
PLAIN, PADDED = (Recipe("llama", heads=4, head_dim=4, padding=padding, seed=7) for padding in ("none", "left"))


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


OUTER, TWICE, COUNT = FACTS = a_sum_of_outer_products, twice_the_divergence, directions_count_by_the_metric
OPT, PHI = (replace(PLAIN, family=family) for family in ("opt", "phi"))
MISTAKES = [  # the function, its wrong version, which gets the right one first, and the property that must fail
    ("covariance", lambda right, g, mask, total: right(g.sum(1, True), None, total), OUTER, PLAIN),
    ("torch.autograd.grad", lambda right, loss, outputs: right(loss, outputs)[::-1], OUTER, PLAIN),
    ("log_probabilities", lambda right, logits, batch: right(logits, replace(batch, mask=None)), OUTER, PADDED),
    ("drawn", lambda right, log_p, seed: log_p.argmax(1), TWICE, PLAIN),
    ("torch.cat", lambda right, parts, dim: right([parts[0], parts[0]], dim), COUNT, PLAIN),
]


@pytest.mark.parametrize("recipe", [replace(PADDED, padding="right"), OPT, PHI], ids=lambda recipe: recipe.family)
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_property_holds(fact, recipe):
    fact(recipe)


@pytest.mark.parametrize(("name", "version", "fact", "recipe"), MISTAKES, ids=[name for name, *_ in MISTAKES])
def test_property_fails_on(name, version, fact, recipe, monkeypatch):
    fact(recipe)
    right = resolve_name(f"minislice.beyond.fisher.{name}")
    monkeypatch.setattr(f"minislice.beyond.fisher.{name}", lambda *args, **named: version(right, *args, **named))
    with pytest.raises(AssertionError):
        fact(recipe)


def test_batches_and_processes_make_no_difference_and_the_first_sequences_suffice(monkeypatch):
    model, ids, mask = PADDED.model(), PADDED.tokens(), PADDED.mask()
    whole, shared = information(model, ids, mask), information(model, ids, mask, 1, processes=3)
    assert all(relative_error(*pair) <= 1e-12 for pair in zip(whole, shared, strict=True))
    monkeypatch.setattr(fisher, "SEQUENCES", 2)
    assert torch.equal(*(information(model, ids[:n], mask[:n])[0] for n in (2, 4)))


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES)
def test_neurons_that_write_nothing_go_first_in_every_family(family, variant):
    idle_neurons_can_go(fixed(family, variant, layers=2), slicing=0, repair=True, fisher=True)


@pytest.mark.parametrize(("dtype", "frozen"), [(torch.float64, False), (torch.bfloat16, True)])
def test_where_no_neuron_goes_the_model_stays_as_it_is(dtype, frozen):
    model = PADDED.model().to(dtype).requires_grad_(not frozen).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    minislice.delete_neurons(model, PADDED.tokens(), PADDED.mask(), neurons=0.0, fisher=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and parameter.requires_grad != frozen
    assert model.training


def test_it_is_refused_where_it_can_do_nothing(tmp_path):
    with pytest.raises(ValueError, match="give neurons as well"):
        minislice.slice_model(PLAIN.model(), PLAIN.tokens(), slicing=0.25, fisher=True)
    with pytest.raises(ValueError, match="whole network in memory"):
        minislice.slice_streamed("mini-opt", PLAIN.tokens(), tmp_path / "sliced", neurons=0.5, fisher=True)
    model = PLAIN.model()
    network(model).blocks[0].w_in[0].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or an infinity on calibration sequence 0"):
        minislice.delete_neurons(model, PLAIN.tokens(), fisher=True)
