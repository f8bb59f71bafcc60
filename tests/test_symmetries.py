"""Every symmetry holds on random models of every family; mistakes, and elements outside the group, are caught."""

import copy
import functools
import json
from dataclasses import replace
from pkgutil import resolve_name

import properties
import pytest
import torch
from family_models import CASES, FAMILIES, VARIANTS, FamilyRecipe, family_recipes, fixed
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import minislice
from minislice.architecture.linears import set_weight
from minislice.architecture.network import network
from minislice.beyond import anatomy
from minislice.beyond import symmetries as s
from minislice.beyond.verification import change
from minislice.command.cli import main
from minislice.teaching.small import small_model

EXACT, ROUNDED = 1e-10, 1e-5  # where a model computes in float32 inside, its own rounding shows
BY_NAME = {symmetry.name: symmetry for symmetry in s.SYMMETRIES}
ALIBI = [("falcon", 2), ("falcon", 3), ("bloom", 0)]
# GELU or xIELU without a gate; gpt_oss has a gate, but adds 1 to `up` after clipping it.
UNSCALED = ("phi", "apertus", "starcoder2", "gpt_neox", "gpt2", "gptj", "falcon", "bloom", "gpt_oss")
UNTURNED = [("phi", 0), ("smollm3", 0), ("cohere2", 0), ("stablelm", 0), *ALIBI]  # some dimension, in some layer
UNTURNED += [(family, v) for family in ("opt", "glm", "nemotron", "gpt_neox", "gpt2", "gptj") for v in (0, 1)]


def small(family: str, variant: int = 0) -> FamilyRecipe:
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
def dense(recipe: FamilyRecipe) -> tuple[nn.Module, torch.Tensor, float]:
    """The fused model, its logits, and the error that rounding explains."""
    model = properties.fused(recipe)
    rounds = recipe.rounding or any(attention.rounds for attention in anatomy.attentions(network(model)))
    return model, properties.logits(model, recipe.tokens(1), recipe.mask()), ROUNDED if rounds else EXACT


def changed_by(symmetry: s.Symmetry, recipe: FamilyRecipe, act=None, seed: int = 1) -> tuple[float, float, int | str]:
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


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_a_family_has_the_symmetries_that_it_should_have(family, variant):
    for symmetry in s.SYMMETRIES:
        error, allowed, freedom = changed_by(symmetry, small(family, variant))
        assert isinstance(freedom, int) == has(symmetry, family, variant), (symmetry.name, freedom)
        assert error <= allowed, (symmetry.name, error)


@pytest.mark.parametrize("symmetry", s.SYMMETRIES, ids=lambda symmetry: symmetry.name)
def test_a_symmetry_holds_on_random_models(symmetry):
    able = [family for family in FAMILIES if any(has(symmetry, family, v) for v in range(len(VARIANTS[family])))]

    @given(st.sampled_from(able).flatmap(family_recipes))
    @settings(max_examples=10)
    def holds(recipe):
        assume(has(symmetry, recipe.family, recipe.variant))
        error, allowed, _ = changed_by(symmetry, recipe, seed=recipe.seed)
        assert error <= allowed

    holds()


WRONG = []  # name of the symmetry, family, variant, what to do at a place instead of acting


def wrong(name: str, family: str, variant: int = 0):
    """Note a change that isn't a symmetry: a mistake, or an element outside the group."""
    return lambda act: WRONG.append(pytest.param(name, family, variant, act, id=f"{act.__name__} {family}")) or act


def distorted(name: str, family: str, variant: int = 0):
    """The same, for an element that the function makes of a place, an element of the group, and a generator."""

    def note(distort):
        def act(place, generator):
            symmetry = BY_NAME[name]
            symmetry.act(place, distort(place, symmetry.element(place, generator), generator))

        act.__name__ = distort.__name__
        return wrong(name, family, variant)(act) and distort

    return note


@distorted("signal rotation", "llama")
def not_orthogonal(net, Q, generator):
    return 1.1 * Q


@distorted("constant in all rows of the head", "opt")
def another_constant_in_each_row(net, c, generator):
    return torch.randn(net.head.out_features, len(c), generator=generator, dtype=torch.float64)


@wrong("scale of the signal", "llama")
def eps_as_trained(net, generator):
    BY_NAME["scale of the signal"].act(net, 1.5)
    for norm in net.norms:
        norm.eps /= 1.5**2


@distorted("value-output", "olmo", 1)
def values_that_are_clipped(attention, R, generator):
    return [3 * r for r in R]


@distorted("query-key", "llama")
@distorted("query-key", "phi")
def any_matrix_of_a_head(attention, G, generator):
    return [s.invertible(attention.size, generator) for _ in G]


@distorted("query-key", "qwen2", 1)  # where RoPE turns dimensions i and i + size / 2
def pairs_of_neighbours(attention, G, generator):
    order = torch.arange(attention.size).view(2, -1).T.flatten().argsort()
    return [g[order][:, order] for g in G]


@distorted("constant added to all keys", "llama")
@distorted("constant added to all keys", "gpt_oss")  # its sinks aren't keys
@distorted("constant added to all keys", "qwen3")  # a norm stands behind
def constants_in_every_dimension(attention, b, generator):
    return torch.randn(b.shape, generator=generator, dtype=torch.float64)


@distorted("order of heads", "bloom")
def heads_with_slopes_of_their_own(attention, orders, generator):
    return [1, 2, 3, 0], orders[1]


@wrong("order of heads", "gpt_oss")
def sinks_that_stay(attention, generator):
    groups = [replace(g, heads=[replace(head, others=[]) for head in g.heads]) for g in attention.groups]
    BY_NAME["order of heads"].act(replace(attention, groups=groups), ([1, 0], [[1, 0], [1, 0]]))


@wrong("order of neurons", "llama")
def a_gate_that_stays(neurons, generator):
    BY_NAME["order of neurons"].act(replace(neurons, made=neurons.made[1:]), torch.arange(40).flip(0))


@wrong("scales of neurons", "phi")  # GELU
@wrong("scales of neurons", "llama")  # SiLU, of the gate
@wrong("scales of neurons", "nemotron")  # the square of ReLU, whose power is 2
def scales_of_power_1(neurons, generator):
    scalable = [anatomy.Scalable(neurons.made[0], 1, False)]
    BY_NAME["scales of neurons"].act(replace(neurons, scalable=scalable), [s.factors(neurons.count, generator)])


@distorted("scales of neurons", "opt")
def negative_scales(neurons, scales, generator):
    return [-c for c in scales]


@wrong("order of experts", "mixtral")
def a_router_that_stays(block, generator):
    for parameter in block.experts.parameters():
        parameter.copy_(parameter.flip(0))


@pytest.mark.parametrize(("name", "family", "variant", "act"), WRONG)
def test_a_mistake_or_an_element_outside_the_group_changes_the_output(name, family, variant, act):
    error, allowed, _ = changed_by(BY_NAME[name], small(family, variant), act)
    assert error > 10 * allowed


def scale_alone(right):
    return lambda *norm: [anatomy.Part(part.tensors[:1], part.numbers) for part in right(*norm)]


PLANTED = [  # what is replaced, what is made of it, and the symmetry that must fail
    ("torch.linalg.inv", lambda right: lambda M: right(M).T, "value-output", ("llama", 0)),
    (
        "minislice.beyond.anatomy.rows_of",  # a bias stays
        *(lambda right: lambda linear, numbers: anatomy.Part([linear.weight], numbers), "value-output", ("opt", 0)),
    ),
    ("minislice.beyond.anatomy._scales", scale_alone, "query-key", ("phi", 1)),
    (
        "minislice.beyond.symmetries.fold_writer",  # W_out's bias stays
        *(lambda right: lambda linear, Q: set_weight(linear, (linear.weight.T @ Q).T), "signal rotation", ("opt", 0)),
    ),
]


@pytest.mark.parametrize(("target", "version", "name", "case"), PLANTED)
def test_a_planted_mistake_is_caught(target, version, name, case, monkeypatch):
    dense(small(*case))  # without the mistake
    monkeypatch.setattr(target, version(resolve_name(target)))
    error, allowed, freedom = changed_by(BY_NAME[name], small(*case))
    assert freedom > 0 and error > 10 * allowed


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


def test_the_command_prints_the_table(capsys):
    command = ["verify", "mini-phi", "--symmetries", "--samples", "1", "--seqlen", "16", "--dtypes", "float64,bfloat16"]
    assert main(command) == 0
    assert [line[:34].strip() for line in capsys.readouterr().out.splitlines()[2:-1]] == [*BY_NAME]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["symmetries"][0]["freedom"] == 192 * 191 // 2


def test_a_model_in_no_table_gets_the_answer_of_propose():
    for kind, answer in (("gemma2", "a norm with a scale stands behind"), ("olmoe", "register the one that .* finds")):
        with pytest.raises(ValueError, match=f"{kind}.*{answer}"):
            minislice.verify(small_model(kind), torch.ones(1, 4, dtype=torch.long), symmetries=True)
