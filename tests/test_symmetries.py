"""Every symmetry holds on random models of every family; mistakes, and elements outside the group, are caught."""

import copy
import functools
from dataclasses import replace
from unittest import mock

import properties
import pytest
import torch
from commands import document
from hypothesis import assume, given, settings
from models import FAMILIES, REPRESENTATIVES_FIRST, VARIANTS, Recipe, fixed, recipes
from torch import nn

import minislice
from minislice.architecture.network import network
from minislice.symmetries import anatomy, places
from minislice.symmetries import kinds as s
from minislice.symmetries.verification import change
from minislice.teaching import quantization
from minislice.teaching.quantization import hadamard, peak, rounded
from minislice.teaching.small import small_model

EXACT, ROUNDED = 1e-10, 1e-5  # where a model computes in float32 inside, its own rounding shows
BY_NAME = {symmetry.name: symmetry for symmetry in s.SYMMETRIES}
ALIBI = [("falcon", 2), ("falcon", 3), ("bloom", 0)]
# GELU or xIELU without a gate; gpt_oss has a gate, but adds 1 to `up` after clipping it.
UNSCALED = ("phi", "apertus", "starcoder2", "gpt_neox", "gpt2", "gptj", "falcon", "bloom", "gpt_oss")
UNTURNED = [("phi", 0), ("smollm3", 0), ("cohere2", 0), ("stablelm", 0), *ALIBI]  # some dimension, in some layer
UNTURNED += [(family, v) for family in ("opt", "glm", "nemotron", "gpt_neox", "gpt2", "gptj") for v in range(3)]


def small(family: str, variant: int = 0) -> Recipe:
    return fixed(family, variant, layers=2, head_dim=8, eps=1e-3, tied=False)


def has(symmetry: s.Symmetry, family: str, variant: int) -> bool:
    """Whether a family has a symmetry: what a person says who has read transformers' code."""
    return {
        s.ValueOutput: (family, variant) != ("olmo", 1),  # which clips queries, keys and values
        s.QueryKey: (family, variant) != ("olmo", 1),
        s.KeyConstant: (family, variant) in UNTURNED,
        s.HeadOrder: (family, variant) not in ALIBI,
        s.NeuronScaling: family not in UNSCALED,
        s.ExpertOrder: "moe" in family or family in ("mixtral", "gpt_oss"),
    }.get(type(symmetry), True)


@functools.lru_cache(maxsize=2)
def dense(recipe: Recipe) -> tuple[nn.Module, torch.Tensor, float]:
    """The fused model, its logits, and the error that rounding explains."""
    model = properties.fused(recipe)
    rounds = recipe.rounding or any(attention.rounds for attention in anatomy.attentions(network(model)))
    return model, properties.logits(model, recipe.tokens(1), recipe.mask()), ROUNDED if rounds else EXACT


def changed_by(symmetry: s.Symmetry, recipe: Recipe, act=None, seed: int = 1) -> tuple[float, float, int | str]:
    """The error after random elements have acted, or after `act`; the error that rounding explains; the freedom."""
    before, expected, allowed = dense(recipe)
    model = copy.deepcopy(before)
    net, freedom = network(model), 0
    if act is None:
        freedom = change(net, symmetry, seed)
    else:
        with torch.no_grad():
            for place in symmetry.places(net):
                act(place, torch.Generator().manual_seed(seed))
    actual, old = properties.logits(model, recipe.tokens(1), recipe.mask()), dict(before.named_parameters())
    if recipe == small(recipe.family, recipe.variant):  # else a random order may be the one that was there
        moved = any(name not in old or not torch.equal(value, old[name]) for name, value in model.named_parameters())
        assert moved or isinstance(freedom, str), "the element does nothing"
    if not symmetry.of_logits:
        actual, expected = actual.log_softmax(-1), expected.log_softmax(-1)
    return properties.relative_error(actual, expected), allowed, freedom


@pytest.mark.parametrize(("family", "variant"), REPRESENTATIVES_FIRST)
def test_a_family_has_the_symmetries_that_it_should_have(family, variant):
    for symmetry in s.SYMMETRIES:
        error, allowed, freedom = changed_by(symmetry, small(family, variant))
        assert isinstance(freedom, int) == has(symmetry, family, variant), (symmetry.name, freedom)
        assert error <= allowed, (symmetry.name, error)


@pytest.mark.parametrize("symmetry", s.SYMMETRIES, ids=lambda symmetry: symmetry.name)
def test_a_symmetry_holds_on_random_models(symmetry):
    able = [family for family in FAMILIES if any(has(symmetry, family, v) for v in range(len(VARIANTS[family])))]

    @given(recipes(able))
    @settings(max_examples=10)
    def holds(recipe):
        assume(has(symmetry, recipe.family, recipe.variant))
        error, allowed, _ = changed_by(symmetry, recipe, seed=recipe.seed)
        assert error <= allowed

    holds()


def outside(distorted):
    """Acts with what is made of a place and an element: one outside the symmetry's group."""
    return lambda symmetry, place, generator: symmetry.act(
        place, distorted(place, symmetry.element(place, generator), generator)
    )


def constants(place, element, generator):
    return torch.randn(element.shape, generator=generator, dtype=torch.float64)


def pairs_of_neighbours(attention, matrices, generator):
    order = torch.arange(attention.size).view(2, -1).T.flatten().argsort()
    return [G[order][:, order] for G in matrices]


def eps_as_trained(symmetry, net, generator):
    symmetry.act(net, 1.5)
    for norm in net.norms:
        norm.eps /= 1.5**2


def sinks_that_stay(symmetry, attention, generator):
    groups = [replace(g, heads=[replace(head, others=[]) for head in g.heads]) for g in attention.groups]
    symmetry.act(replace(attention, groups=groups), ([1, 0], [[1, 0], [1, 0]]))


def a_gate_that_stays(symmetry, neurons, generator):
    symmetry.act(replace(neurons, made=neurons.made[1:]), torch.arange(40).flip(0))


def scales_of_power_1(symmetry, neurons, generator):
    scalable = [places.Scalable(neurons.made[0], 1, False)]
    symmetry.act(replace(neurons, scalable=scalable), [torch.linspace(0.6, 1.7, neurons.count)])


def a_router_that_stays(symmetry, block, generator):
    for parameter in block.experts.parameters():
        parameter.copy_(parameter.flip(0))


WRONG = [  # a symmetry, a wrong action at a place, and a model whose output it changes
    ("signal rotation", outside(lambda net, rotations, g: [1.1 * Q for Q in rotations]), ("llama", 0)),
    ("scale of the signal", eps_as_trained, ("llama", 0)),
    ("constant in all rows of the head", outside(lambda net, c, g: constants(net, net.head.weight, g)), ("opt", 0)),
    ("value-output", outside(lambda attention, R, generator: [3 * r for r in R]), ("olmo", 1)),  # values are clipped
    ("query-key", outside(pairs_of_neighbours), ("qwen2", 1)),  # where RoPE turns dimensions i and i + size / 2
    ("constant added to all keys", outside(constants), ("llama", 0)),  # in the dimensions that RoPE turns
    ("constant added to all keys", outside(constants), ("gpt_oss", 0)),  # its sinks aren't keys
    ("order of heads", outside(lambda attention, orders, g: ([1, 2, 3, 0], orders[1])), ("bloom", 0)),  # has slopes
    ("order of heads", sinks_that_stay, ("gpt_oss", 0)),
    ("order of neurons", a_gate_that_stays, ("llama", 0)),
    ("scales of neurons", outside(lambda neurons, scales, generator: [-c for c in scales]), ("opt", 0)),
    ("scales of neurons", scales_of_power_1, ("phi", 0)),  # GELU
    ("scales of neurons", scales_of_power_1, ("nemotron", 0)),  # the square of ReLU, whose power is 2
    ("order of experts", a_router_that_stays, ("mixtral", 0)),
]


@pytest.mark.parametrize(("name", "act", "case"), WRONG, ids=[f"{name} {case[0]}" for name, _, case in WRONG])
def test_a_wrong_action_changes_the_output(name, act, case):
    error, allowed, _ = changed_by(BY_NAME[name], small(*case), functools.partial(act, BY_NAME[name]))
    assert error > 10 * allowed


@pytest.mark.parametrize(("head", "adapter"), [("own", "low-rank"), ("tied", "low-rank"), ("fitted", "none")])
def test_a_sliced_model_is_checked_for_what_it_still_has(head, adapter, tmp_path):
    recipe = replace(small("llama"), tied=True)
    options = {"head": head, "adapter": adapter, "width": 8, "neurons": 0.5, "multiple": 1}
    minislice.slice_model(recipe.model(), recipe.tokens(), **options).save_pretrained(tmp_path / "sliced")
    sliced, _ = minislice.load(tmp_path / "sliced", dtype="float64")
    found = minislice.verify(sliced, recipe.tokens(), symmetries=True, dtypes=["float64"])
    freedom, widths = {finding.symmetry: finding.freedom for finding in found.findings}, network(sliced).widths
    free = [k * (k - 1) // 2 for k in widths]  # one rotation at each boundary, where adapters stand between them
    expected = {"own": sum(free), "tied": sum(free[1:-1]), "fitted": f"{s.SHARED}, and so its basis"}
    assert found.passed and freedom["signal rotation"] == expected[head]
    assert freedom["constant in all rows of the head"] == (widths[-1] if head == "own" else s.SHARED)
    assert freedom["scale of the signal"] == 1 and freedom["scales of neurons"] == 2 * 20  # half of the neurons


def test_a_symmetry_that_fails_is_reported(monkeypatch):
    recipe = small("llama")
    monkeypatch.setattr(s.QueryKey, "commuting", staticmethod(lambda a, generator: s.invertible(a.size, generator)))
    found = minislice.verify(recipe.model(), recipe.tokens(), symmetries=True, dtypes=["float64"])
    assert not found.passed and [line[:9] for line in str(found).splitlines() if "FAILED" in line] == ["query-key"]


def test_the_command_prints_the_table(tmp_path, run):
    small("phi").model().save_pretrained(tmp_path)
    command = ["verify", tmp_path, "--symmetries", "--samples", "1", "--seqlen", "16", "--dtypes", "float64,bfloat16"]
    status, printed, _ = run(*command)
    assert status == 0 and [line[:34].strip() for line in printed.splitlines()[2:-1]] == [*BY_NAME]
    found = document(run(*command, "--json")[1])
    assert found["passed"] and found["symmetries"][0]["freedom"] == 32 * 31 // 2


UNSEEN = [  # a registered family, and what is said of some symmetries
    ("bitnet", {}, {"value-output": "its norms aren't one for", "order of neurons": "weights stand between"}),
    ("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0}, {}),  # its router has corrections
    ("glm4_moe", {"n_routed_experts": 4, "first_k_dense_replace": 0, "n_group": 2}, {"order of experts": "groups"}),
]


@pytest.mark.parametrize(("kind", "fields", "reasons"), UNSEEN, ids=[kind for kind, *_ in UNSEEN])
def test_what_a_registered_family_does_not_have_is_said_and_the_rest_holds(kind, fields, reasons, monkeypatch):
    model = small_model(kind, **fields)
    monkeypatch.setitem(minislice.families.FAMILIES, kind, minislice.propose(model).family)
    found = minislice.verify(model, torch.arange(40).view(2, 20), symmetries=True, dtypes=["float64"])
    freedom = {finding.symmetry: finding.freedom for finding in found.findings}
    assert found.passed and freedom["signal rotation"] == 32 * 31 // 2
    assert all(reason in freedom[name] for name, reason in reasons.items())


def test_memory_that_ends_says_nothing_about_an_attention(monkeypatch):
    monkeypatch.setattr(anatomy, "_AttentionRun", mock.Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        anatomy.attentions(network(small_model("llama")))


def test_a_model_in_no_table_gets_the_answer_of_propose():
    for kind, answer in (("gemma2", "a norm with a scale stands after"), ("olmoe", "register the one that .* finds")):
        with pytest.raises(ValueError, match=f"{kind}.*{answer}"):
            minislice.verify(small_model(kind), torch.ones(1, 4, dtype=torch.long), symmetries=True)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_rounded_row_has_so_many_levels_and_keeps_its_largest_entry(bits):
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = rounded(x, bits) / x.abs().amax(1, keepdim=True) * (2 ** (bits - 1) - 1)
    assert (steps - steps.round()).abs().max() < 1e-9 and steps.abs().max().round() == 2 ** (bits - 1) - 1
    assert ((rounded(x, bits) - x).abs() <= x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1) / 2 + 1e-12).all()
    assert torch.equal(rounded(torch.zeros(2, 5), bits), torch.zeros(2, 5))
    assert torch.allclose(peak(torch.eye(4)), torch.full((4,), 2.0))


@pytest.mark.parametrize("size", [1, 12, 64, 192])
def test_a_hadamard_matrix_is_orthogonal_and_flat(size):
    H = hadamard(size, torch.Generator().manual_seed(0))
    assert torch.allclose(H @ H.T, torch.eye(size, dtype=H.dtype), atol=1e-12)
    assert torch.allclose(H.abs(), torch.full_like(H, size**-0.5))
    with pytest.raises(ValueError, match="order 480"):
        hadamard(480, torch.Generator())


@pytest.mark.parametrize("family", ["llama", "phi", "opt"])
def test_each_linear_reads_what_the_function_makes_of_its_input(family):
    recipe = Recipe(family, head_dim=4, heads=4)
    model = recipe.model()
    found, before = quantization.linears_by_input(network(model)), properties.logits(model, recipe.tokens())
    assert [*found] == list(quantization.WHERE)
    assert sum(map(len, found.values())) == sum(len(b.readers) + len(b.writers) for b in network(model).blocks)
    assert all(linear.in_features == network(model).blocks[-1].neurons for linear in found[quantization.NEURONS])
    for linears in found.values():
        with quantization.inputs_become(linears, torch.zeros_like):
            assert properties.relative_error(properties.logits(model, recipe.tokens()), before) > 1e-3
    assert torch.equal(properties.logits(model, recipe.tokens()), before)
    quantization.round_weights(network(model), 3)
    for block in network(model).blocks:
        assert all(len(row.unique()) <= 7 for linear in block.linears.values() for row in linear.weight)
