"""Sections 3.1 to 3.3: what fusing, rotating and adapters leave behind; what they compute, `properties` says."""

import copy
import gc
import weakref
from unittest.mock import Mock

import properties
import pytest
import torch
from hypothesis import given
from models import Recipe, fixed, recipes
from torch import Tensor

import minislice
from minislice import fuse, load, rotate, slice_model
from minislice.architecture.blocks import RMSNorm
from minislice.architecture.network import network
from minislice.fusion import subtract_mean
from minislice.invariance import STEPS, TOLERANCES, in_dtype, logits_of, relative_error, verify
from minislice.rotation import random_orthogonal, times
from minislice.teaching.small import small_model


@pytest.mark.parametrize("family", ["opt", "phi"])
def test_given_rotations_are_the_ones_applied_and_compose(family):
    recipe = Recipe(family)
    model, generator = properties.fused(recipe), torch.Generator().manual_seed(3)
    rotations = [random_orthogonal(recipe.width, generator) for _ in range(len(network(model).blocks) + 1)]
    one, many = (rotate(copy.deepcopy(model), given) for given in (rotations[0], rotations))
    with torch.no_grad():
        before, *after = (network(rotated).embed(recipe.tokens())[0] for rotated in (model, one, many))
    assert all(properties.relative_error(x, before @ rotations[0]) <= properties.EXACT for x in after)
    for rotated in (many, rotate(one, seed=2)):
        properties.assert_same_logits(rotated, model, recipe, properties.EXACT)


def test_weights_of_16_bits_are_rounded_once():
    W, Q = (random_orthogonal(16, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    W = W.bfloat16()
    assert torch.equal(times(W, Q), (W.double() @ Q).bfloat16())
    assert torch.equal(subtract_mean(W), (W.double() - W.double().mean(1, keepdim=True)).bfloat16())


def test_a_dtype_is_verified_as_a_model_that_was_loaded_in_it_computes(tmp_path, monkeypatch):
    """RoPE's frequencies stay in float32 there; rounded to 16 bits, they turn late tokens by other angles."""
    model, ids = small_model("llama").float(), torch.arange(48).view(2, 24)
    model.save_pretrained(tmp_path)
    loaded, exact = (load(tmp_path, dtype=dtype)[0] for dtype in ("bfloat16", "float64"))
    error = relative_error(*(logits_of(each, ids, batch_size=1) for each in (loaded, exact)))
    assert verify(model, ids, dtypes=["bfloat16"]).measurements[0].error == error
    monkeypatch.setattr("minislice.symmetries.verification.change", lambda *_: 0)  # and so is a fused one
    loaded, exact = (in_dtype(fuse(in_dtype(model, "float64")), dtype) for dtype in ("bfloat16", "float64"))
    error = relative_error(*(logits_of(each, ids, batch_size=1) for each in (loaded, exact)))
    assert minislice.verify(model, ids, symmetries=True, dtypes=["bfloat16"]).findings[0].errors["bfloat16"] == error


def test_a_norm_of_large_numbers_does_not_overflow_in_float16():
    """The square of 300 does."""
    assert torch.equal(RMSNorm(8, 1e-5)(torch.full((1, 8), 300.0).half()), torch.ones(1, 8).half())


@given(recipes())
def test_fused_norms_have_no_weights_keep_the_models_eps_and_read_a_mean_of_zero(recipe):
    """Why an RMSNorm may stand for a LayerNorm: nothing that enters it has a mean left to subtract."""
    model, means = properties.fused(recipe), []
    net = network(model)
    for norm in net.norms:
        assert isinstance(norm, RMSNorm) and not list(norm.parameters())
        assert (norm.eps, norm.trained_width) == (recipe.eps, recipe.width)
        norm.register_forward_pre_hook(lambda _, args: means.append(args[0].mean(-1).abs().max() / args[0].abs().max()))
    properties.logits(model, recipe.tokens(), recipe.mask())
    assert len(means) == len(net.norms) and (max(means) <= 1e-12 or not net.subtracts_mean)


def test_fused_head_never_shares_the_embedding_even_if_another_model_shares_the_config():
    model, other = (Recipe("opt", seed=seed).model() for seed in (0, 1))
    other.config = model.config
    fuse(model).tie_weights()  # what transformers does after loading, by the config
    assert other.config.tie_word_embeddings and not model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    properties.assert_same_logits(model, properties.fused(Recipe("opt")), Recipe("opt"), 0.0)


ACTIONS = {
    "fuse": fuse,
    "rotate": lambda model: rotate(model, per_block=True),
    "slice": lambda model: slice_model(model, Recipe("opt").tokens(), width=5),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_changed_model_is_the_same_object_in_the_same_mode(action):
    model = Recipe("opt", tied=False).model().train()
    model.lm_head.requires_grad_(False)
    assert ACTIONS[action](model) is model
    assert all(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith("lm_head")


def bases_at(cosines: list[float], D: int, k: int, k_next: int) -> tuple[Tensor, Tensor]:
    """For `alignment_makes_the_adapter_symmetric`; these are cosines of the principal angles, and the others are 1."""
    generator = torch.Generator().manual_seed(0)
    m, c = len(cosines), torch.tensor(cosines).double()
    P, R = random_orthogonal(D, generator).split([k, D - k], dim=1)
    s = (1 - c.square()).sqrt()
    kept = torch.cat([P[:, :m] * c + R[:, :m] * s, P[:, m:], R[:, m : m + k_next - k]], dim=1)
    deleted = torch.cat([R[:, :m] * c - P[:, :m] * s, R[:, m + k_next - k :]], dim=1)
    mixed = [part @ random_orthogonal(part.shape[1], generator) for part in (P, kept, deleted)]
    return mixed[0], torch.cat(mixed[1:], dim=1)


@pytest.mark.parametrize("k_next", [8, 9])
@pytest.mark.parametrize("cosines", [[0.5], [0.0, 0.3, 1e-5], [1 - 1e-9], [1.0]], ids=str)
def test_alignment_is_exact_at_every_angle(cosines, k_next):
    """Right angles leave the aligned basis undetermined, and angles near them nearly so."""
    bases = bases_at(cosines, 12, 8, k_next)
    properties.alignment_makes_the_adapter_symmetric(Recipe("llama"), k_next=k_next, bases=bases)


def test_isometries_are_aligned():
    """Hundreds of singular values of 1, to 5e-14: at such, LAPACK's decomposition of S has failed to converge."""
    generator = torch.Generator().manual_seed(0)
    P, R = random_orthogonal(576, generator).split([432, 144], dim=1)
    Q_next = torch.cat([P @ random_orthogonal(432, generator), R], dim=1)
    rounding = 5e-14 * torch.randn(576, 576, generator=generator, dtype=P.dtype)
    bases = P, torch.linalg.qr(Q_next + rounding).Q
    properties.alignment_makes_the_adapter_symmetric(Recipe("llama"), k_next=500, bases=bases)


def test_alignment_does_without_a_decomposition_that_fails(monkeypatch):
    monkeypatch.setattr(torch.linalg, "svd", Mock(side_effect=torch.linalg.LinAlgError("failed to converge")))
    bases = bases_at([0.0, 0.3, 1e-4], 12, 8, 9)
    properties.alignment_makes_the_adapter_symmetric(Recipe("llama"), k_next=9, bases=bases, exact=1e-7)


@pytest.mark.parametrize(("family", "padding"), [("opt", "left"), ("llama", "none")])
def test_every_step_passes_in_every_dtype_and_leaves_the_model_alone(family, padding):
    recipe = Recipe(family, padding=padding)
    model = recipe.model()
    result = verify(model, recipe.tokens(), recipe.mask())
    assert {(m.dtype, m.step) for m in result.measurements} == {(d, s) for d in TOLERANCES for s in STEPS}
    assert result.passed and "has the invariance" in str(result), str(result)
    properties.assert_same_logits(model, recipe.model(), recipe, 0.0)


def test_the_default_device_of_the_caller_is_not_used():
    recipe = Recipe("llama")
    model, tokens = recipe.model(), recipe.tokens()
    with torch.device("meta"):
        assert verify(model, tokens, dtypes=["float64"]).passed


def test_relative_error_is_the_largest_difference_over_the_largest_logit():
    reference = [torch.tensor([[1.0, -4.0]]), torch.tensor([[2.0, 0.0]])]
    assert relative_error([reference[0] + 0.5, reference[1] - 1.0], reference) == 0.25
    assert relative_error(reference, reference) == 0.0


@pytest.mark.parametrize("let_go", [True, False])
@pytest.mark.parametrize("family", ["opt", "gpt2"])  # the second one pads its last signal
def test_every_copy_is_let_go_at_once(family, let_go, monkeypatch):
    """Without waiting for Python's garbage collection; and not where a copy's parts go on referring to it."""
    seen = []

    def watched(step):
        return lambda model, *rest: [seen.append(weakref.ref(model)), step(model, *rest)][1]

    monkeypatch.setattr("minislice.invariance.STEPS", {name: watched(step) for name, step in STEPS.items()})
    if not let_go:
        monkeypatch.setattr("minislice.invariance._let_go", lambda model: None)
    gc.disable()
    try:
        verify(fixed(family).model(), fixed(family).tokens(), dtypes=["float64"])
        assert len(seen) == len(STEPS) and any(model() is not None for model in seen) != let_go
    finally:
        gc.enable()
