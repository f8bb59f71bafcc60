"""Section 3.4: what slicing keeps, and what it says of it; that it computes eq. 9, `properties` says."""

import dataclasses
import warnings
from contextlib import suppress
from pathlib import Path

import properties
import pytest
import torch
from hypothesis import given
from models import Recipe, recipes

import minislice
from minislice import fuse, perplexity, rotate, slice_model, whole_paper
from minislice.architecture.network import network
from minislice.corpus.embedded import data_folder
from minislice.options import slice_width
from minislice.pca import covariance, width_keeping
from minislice.rotation import times
from minislice.slicing import folded

LLAMA = Recipe("llama")
MINI_IDS = torch.randint(3, 4096, (4, 64), generator=torch.Generator().manual_seed(0))


def test_the_default_keeps_the_tie_where_it_is_exact_and_both_ends_may_be_whole():
    recipe = Recipe("opt", layers=1)
    untied, D = dataclasses.replace(recipe, tied=False), recipe.width
    for model, options, head, first, last in [
        (recipe.model(), {}, "tied", D, D),
        (recipe.model(), {"width": [D, 5, D]}, "tied", D, D),
        (fuse(recipe.model(), keep_tie=True), {}, "tied", D, D),
        (recipe.model(), {"slice_embedding": True}, "own", 6, D),
        (recipe.model(), {"slice_embedding": False, "slice_head": True}, "own", D, 6),
        (untied.model(), {}, "own", 6, D),
        (rotate(recipe.model()), {}, "own", 6, D),
    ]:
        report = slice_model(model, recipe.tokens(), **{"width": 6, **options}).slicing
        assert (report.options.head, report.widths[0], report.widths[-1]) == (head, first, last), options
    assert not network(slice_model(recipe.model(), recipe.tokens(), slicing=0)).has_adapters


def test_embeddings_of_the_trained_width_do_not_fit_a_sliced_model():
    model = slice_model(LLAMA.model(), LLAMA.tokens(), width=6, head="own")
    with pytest.raises(RuntimeError, match="shape"):
        model(inputs_embeds=torch.zeros(1, 3, LLAMA.width, dtype=model.dtype))


def test_an_error_leaves_w_out_in_its_own_basis():
    [linear] = network(fuse(Recipe("llama").model())).blocks[0].w_out
    trained = linear.weight.clone()
    with suppress(FloatingPointError), folded([linear], -torch.eye(len(trained)).double()):
        raise FloatingPointError("not finite")
    assert torch.equal(linear.weight, trained)


def test_covariance_does_not_use_tf32_and_leaves_the_setting_alone(monkeypatch):
    products, split, seen = torch.backends.cuda.matmul, torch.Tensor.split, []
    monkeypatch.setattr(torch.Tensor, "split", lambda *a: seen.append(products.fp32_precision) or split(*a))
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        covariance(torch.randn(8, 4))
        assert seen == ["ieee"] and products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


def test_a_callers_autocast_rounds_neither_covariances_nor_weights():
    x = torch.randn(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        C = covariance(x)
        assert torch.equal(times(x, torch.eye(4).double()), x)
    assert torch.equal(C, covariance(x))


@given(recipes())
def test_no_other_basis_discards_less_than_the_principal_components_and_no_other_columns_than_the_smallest(recipe):
    """At the first boundary: later ones see different signals."""
    names, net = ("pca", "random", "column-norm"), network(fuse(recipe.model()))
    best, random, columns = (properties.sliced(recipe, basis=b, seed=recipe.seed).slicing.discarded[0] for b in names)
    assert best - properties.EXACT <= min(random, columns)
    with torch.no_grad():
        x, mask = net.norms[0](net.embed(recipe.tokens(), recipe.mask())[0]), recipe.mask()
    energies = x[slice(None) if mask is None else mask.bool()].flatten(0, -2).square().sum(0).sort().values
    smallest = energies[: recipe.width - recipe.width // 2].sum() / energies.sum()
    assert abs(columns - smallest) <= properties.EXACT


def test_one_sequence_is_enough_and_a_tokenizers_output_brings_its_own_mask():
    recipe = Recipe("llama", padding="left")
    ids, mask = recipe.tokens(), recipe.mask()
    encoded = {"input_ids": ids, "attention_mask": mask}
    for tokens, expected in [
        ((encoded,), (ids, mask)),
        (([ids], [mask]), (ids, mask)),
        (([ids[0]],), (ids[:1],)),
    ]:
        model, other = (slice_model(recipe.model(), *given, width=5) for given in (tokens, expected))
        properties.assert_same_logits(model, other, recipe, 0.0)
        assert perplexity(model, *tokens) == perplexity(other, *expected)


def test_widths_are_what_the_paper_prints_and_those_of_a_spectrum_are_rounded_up():
    assert [slice_width(4096, fraction) for fraction in (0.0, 0.2, 0.25, 0.3)] == [4096, 3272, 3072, 2864]
    assert slice_width(100, 0.3, multiple=1) == 70  # 0.7 * 100 is 69.99... in floating point
    assert slice_width(13, 0.0) == 13  # nothing deleted: nothing rounded
    eigenvalues = torch.tensor([6.0, 3.0, 1.0, 0.0]).double()
    assert [width_keeping(eigenvalues, discard) for discard in (0.0, 0.05, 0.15, 0.5, 0.9)] == [3, 3, 2, 1, 1]
    assert [width_keeping(eigenvalues, 0.5, multiple) for multiple in (1, 2, 8)] == [1, 2, 4]  # rounded up, at most D
    assert properties.sliced(LLAMA, discard=0.2, multiple=8).slicing.widths == [16, 8, 8, 8, 20]  # the head stays whole


@pytest.mark.parametrize("options", [{"basis": "random"}, {"orientation": "random"}], ids=str)
def test_seed_repeats_and_another_seed_differs(options):
    models = [properties.sliced(LLAMA, seed=seed, **options) for seed in (0, 0, 1)]
    first, again, other = (network(model).embeddings[0].weight for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_float32_eigenvectors_are_close_to_float64s_and_not_the_same():
    """Appendix A.2."""
    models = [properties.sliced(LLAMA, width=6, pca_dtype=dtype) for dtype in ("float64", "float32")]
    exact, rough = (properties.logits(model, LLAMA.tokens(seed=1)) for model in models)
    assert 1e-9 < properties.relative_error(rough, exact) < 1e-3


def test_too_few_different_tokens_are_told():
    ids = LLAMA.tokens() % 7 + 1
    said = r"120 calibration tokens .* at boundary 0 they span 7 of 20 dimensions, and 12 were kept, so that 5"
    with pytest.warns(UserWarning, match=said) as warned:
        slice_model(LLAMA.model(), ids, width=12, head="own")
    assert warned[0].filename.endswith("report.py")  # not a line that depends on who slices
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for head in ("own", "tied"):  # all that is kept is known; a boundary that is whole keeps what isn't
            slice_model(LLAMA.model(), ids, width=7, head=head)


def test_a_signal_without_mean_has_no_variance_along_it():
    """Products in float32 leave some there, which would cost every adapter a direction."""
    recipe = Recipe("opt", heads=4)
    report = properties.sliced(recipe, recipe.model().float(), width=24).slicing
    assert all(values[-1] <= 1e-15 * values[0] for values in report.eigenvalues)
    assert max(report.ranks) == 32 - 24 - 1


def error_of_the_page(expected: torch.Tensor) -> float:
    page = whole_paper.Llama(data_folder() / "mini-llama", torch.float64)
    with torch.no_grad():
        whole_paper.slice_llama(page, MINI_IDS, 144)
        return ((page.logits(MINI_IDS) - expected).abs().max() / expected.abs().max()).item()


def test_the_page_computes_what_the_package_computes_and_a_wrong_page_is_found(monkeypatch):
    model, _ = minislice.load("mini-llama", dtype="float64")
    minislice.slice_model(model, MINI_IDS, **vars(minislice.SlicingOptions.paper(width=144)))
    with torch.no_grad():
        expected = model(MINI_IDS).logits
    assert error_of_the_page(expected) < 1e-6  # transformers' norm and RoPE compute in float32
    right = whole_paper.principal_components
    monkeypatch.setattr(whole_paper, "principal_components", lambda X: right(X - X.mean((0, 1))))
    assert error_of_the_page(expected) > 1e-4


@pytest.mark.slow
def test_run_as_a_script_it_prints_what_slicing_costs(capsys):
    with torch.no_grad():
        whole_paper.main()
    dense, sliced = capsys.readouterr().out.splitlines()
    assert dense.startswith("dense: perplexity") and sliced.startswith("sliced by 25%: perplexity")


def test_it_uses_nothing_of_the_package_and_fits_on_a_page():
    source = Path(whole_paper.__file__).read_text().splitlines()
    assert "minislice" not in "".join(line for line in source if "import" in line) and len(source) <= 130
