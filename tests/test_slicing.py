"""Section 3.4: what slicing computes, over random models of all families."""

import dataclasses
import re
import warnings

import properties
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from models import FAMILIES, Recipe, recipes

from minislice import fuse, parameters, perplexity, rotate, slice_model
from minislice.architecture.network import network
from minislice.options import SlicingOptions, slice_width
from minislice.pca import covariance, width_keeping

every_family = pytest.mark.parametrize("family", FAMILIES)
signals = st.sampled_from(["normalized", "raw"])
forms = st.sampled_from(["full", "low-rank", "none"])


@st.composite
def recipes_and_widths(draw, **restrictions):
    recipe = draw(recipes(**restrictions))
    return recipe, draw(st.integers(1, recipe.width))


@every_family
def test_the_default_keeps_the_tie_where_it_is_exact_and_both_ends_may_be_whole(family):
    recipe = Recipe(family, layers=1)
    untied, D = dataclasses.replace(recipe, tied=False), recipe.width
    blocks = len(network(recipe.model()).blocks)
    for model, options, head, ends in [
        (recipe.model(), {}, "tied", (D, D)),
        (recipe.model(), {"slice_embedding": False}, "tied", (D, D)),
        (recipe.model(), {"width": None, "discard": 0.3, "multiple": 1}, "tied", (D, D)),
        (recipe.model(), {"width": [D] + [5] * (blocks - 1) + [D]}, "tied", (D, D)),
        (fuse(recipe.model(), keep_tie=True), {}, "tied", (D, D)),
        (recipe.model(), {"slice_embedding": True}, "own", (6, D)),
        (recipe.model(), {"slice_head": True}, "own", (6, 6)),
        (recipe.model(), {"slice_embedding": False, "slice_head": True}, "own", (D, 6)),
        (recipe.model(), {"width": [5] * blocks + [D]}, "own", (5, D)),
        (untied.model(), {}, "own", (6, D)),
        (fuse(recipe.model()), {}, "own", (6, D)),
        (rotate(recipe.model()), {}, "own", (6, D)),
    ]:
        report = slice_model(model, recipe.tokens(), **{"width": 6, **options}).slicing
        assert (report.options.head, report.widths[0], report.widths[-1]) == (head, *ends), options


@given(recipes_and_widths(), signals, forms, st.booleans())
def test_the_embedding_stays_as_trained_where_its_boundary_is_whole(case, signal, adapter, slice_head):
    recipe, k = case
    options = {"signal": signal, "adapter": adapter, "tolerance": 1.0 if adapter == "none" else 0.0}
    options |= {"slice_embedding": False, "slice_head": slice_head}
    model = properties.sliced(recipe, width=k, **options)
    embedding = network(properties.fused(recipe)).embeddings[0].weight
    assert model.slicing.widths[0] == recipe.width
    assert torch.equal(network(model).embeddings[0].weight, embedding)


@every_family
def test_the_papers_setting_has_full_adapters_and_a_head_of_its_own(family):
    recipe = Recipe(family, heads=4)
    model = slice_model(recipe.model(), recipe.tokens(), **vars(SlicingOptions.paper()))
    k, D = 3 * recipe.width // 4 // 8 * 8, recipe.width
    assert model.slicing.widths == [k] * len(network(model).blocks) + [D]
    assert all(type(block.adapter) is type(model.lm_head) is torch.nn.Linear for block in network(model).blocks)
    assert model.slicing.options.signal == "normalized"
    changed = SlicingOptions.paper(width=5, adapter="none", seed=3)
    assert (changed.width, changed.adapter, changed.head, changed.seed) == (5, "none", "own", 3)


@every_family
def test_a_tied_head_saves_its_matrix(family):
    recipe = Recipe(family, tied=True)
    own, tied = (parameters(properties.sliced(recipe, width=12, head=head)) for head in ("own", "tied"))
    assert tied < min(own, parameters(recipe.model()))


@pytest.mark.parametrize("setting", ["high", "medium", "tf32"])
def test_covariance_does_not_use_tf32_and_leaves_the_settings_alone(setting, monkeypatch):
    seen, split, cuda = [], torch.Tensor.split, torch.backends.cuda.matmul

    def state() -> list[str]:
        return [cuda.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]

    monkeypatch.setattr(torch.Tensor, "split", lambda *a: seen.append(state()) or split(*a))
    try:  # by torch's older name or by its newer one
        setattr(cuda, "fp32_precision", setting) if setting == "tf32" else torch.set_float32_matmul_precision(setting)
        before = state()
        covariance(torch.randn(8, 4))
        assert seen == [["ieee", "ieee"]] and state() == before
    finally:
        torch.set_float32_matmul_precision("highest")


@given(recipes_and_widths(), st.sampled_from(["random", "column-norm"]))
def test_no_other_basis_discards_less_than_the_principal_components(case, basis):
    recipe, k = case
    best, other = (properties.sliced(recipe, width=k, basis=b, seed=recipe.seed).slicing for b in ("pca", basis))
    assert other.discarded[0] >= best.discarded[0] - properties.EXACT  # later boundaries see different signals


@given(recipes(), st.sampled_from([2, 4]))
def test_discard_rounds_widths_up_and_leaves_the_head_whole(recipe, multiple):
    exact, rounded = (properties.sliced(recipe, discard=0.2, multiple=m).slicing for m in (1, multiple))
    assert exact.widths[-1] == rounded.widths[-1] == recipe.width
    assert all(k % multiple == 0 or k == recipe.width for k in rounded.widths)
    assert 0 <= rounded.widths[0] - exact.widths[0] < multiple
    assert max(rounded.discarded) <= 0.2


def test_one_sequence_is_enough_and_a_tokenizers_output_brings_its_own_mask():
    recipe = Recipe("llama", padding="left")
    ids, mask = recipe.tokens(), recipe.mask()
    encoded, one = {"input_ids": ids, "attention_mask": mask}, (ids[:1], None)
    for tokens, expected in (
        *[((encoded, None), (ids, mask)), (([encoded], None), (ids, mask)), (([ids], [mask]), (ids, mask))],
        *[((ids[0], None), one), (([ids[0]], None), one)],
    ):
        model, other = (slice_model(recipe.model(), *given, width=5) for given in (tokens, expected))
        properties.assert_same_logits(model, other, recipe, 0.0)
        assert perplexity(model, *tokens) == perplexity(other, *expected)


@given(st.integers(1, 512), st.floats(0, 0.99), st.sampled_from([1, 8, 64]))
def test_slice_width_is_the_largest_multiple_that_deletes_enough(D, slicing, multiple):
    kept = (1 - slicing) * D
    assume(slicing > 0 and int(kept + 1e-6) >= multiple)
    k = slice_width(D, slicing, multiple)
    assert k % multiple == 0 and k <= kept + 1e-6 < k + multiple


def test_widths_are_what_the_paper_prints():
    assert [slice_width(4096, fraction) for fraction in (0.0, 0.2, 0.25, 0.3)] == [4096, 3272, 3072, 2864]
    assert slice_width(100, 0.3, multiple=1) == 70  # 0.7 * 100 is 69.99... in floating point
    assert slice_width(13, 0.0) == 13  # nothing deleted: nothing rounded
    eigenvalues = torch.tensor([6.0, 3.0, 1.0, 0.0]).double()
    assert [width_keeping(eigenvalues, discard) for discard in (0.0, 0.05, 0.15, 0.5, 0.9)] == [3, 3, 2, 1, 1]
    assert width_keeping(eigenvalues, 0.5, multiple=8) == 4
    recipe = Recipe("llama", heads=4, hidden=28, tied=False)
    assert slice_model(recipe.model(), recipe.tokens()).slicing.widths == [16] * 4 + [28]  # 21, down to a multiple of 8


@pytest.mark.parametrize("basis", ["random", "pca"])
def test_seed_repeats_and_another_seed_differs(basis):
    recipe = Recipe("phi")
    first, again, other = (
        network(properties.sliced(recipe, basis=basis, orientation="random", seed=seed)).embeddings[0].weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_sliced_model_is_the_same_object_in_the_same_mode():
    recipe = Recipe("phi")
    model = recipe.model().train()
    assert slice_model(model, recipe.tokens(), width=5) is model
    perplexity(model, recipe.tokens())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_family
def test_float32_eigenvectors_are_close_to_float64s_and_not_the_same(family):
    """Appendix A.2."""
    recipe = Recipe(family)
    exact, rough = (
        properties.logits(properties.sliced(recipe, width=6, pca_dtype=dtype), recipe.tokens(seed=1))
        for dtype in ("float64", "float32")
    )
    assert 1e-9 < properties.relative_error(rough, exact) < 1e-3


def test_help_explains_every_option():
    assert "SlicingOptions" in slice_model.__doc__
    for option in dataclasses.fields(SlicingOptions):
        assert re.search(rf"^ +{option.name}: ", SlicingOptions.__doc__, re.MULTILINE), option.name


def test_too_few_different_tokens_are_told():
    recipe = Recipe("llama", hidden=20)
    ids = recipe.tokens() % 7 + 1
    said = r"120 calibration tokens .* at boundary 0 they span 7 of 20 dimensions, and 12 were kept, so that 5"
    with pytest.warns(UserWarning, match=said):
        slice_model(recipe.model(), ids, width=12, head="own")
    with pytest.warns(UserWarning, match="at boundary 1 they span 9 of 20 dimensions"):
        slice_model(recipe.model(), ids[0, :9], width=12)  # where the first stays whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slice_model(recipe.model(), ids, width=7, head="own")  # all that is kept is known


@pytest.mark.parametrize("family", ("opt", "phi"))
def test_a_signal_without_mean_has_no_variance_along_it(family):
    """Products in float32 leave some there, which would cost every adapter a direction."""
    recipe = Recipe(family, heads=4)
    report = properties.sliced(recipe, recipe.model().float(), width=24).slicing
    assert all(values[-1] <= 1e-15 * values[0] for values in report.eigenvalues)
    turned = properties.sliced(recipe, rotate(recipe.model().float()), width=24).slicing  # the mean is elsewhere
    assert all(values[-1] <= 1e-6 * values[0] for values in turned.eigenvalues)
    assert max(report.ranks) == 32 - 24 - 1
    assert properties.relative_error(torch.tensor(turned.discarded), torch.tensor(report.discarded)) < 1e-4
