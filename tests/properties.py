"""The facts that minislice stands on, each a function that asserts it on the model of one recipe.

`test_properties.py` runs them over random recipes, and against planted mistakes, where they must fail. Tolerances are
relative, max |a - b| / max |b|, in float64.
"""

import math
from collections.abc import Callable
from unittest.mock import patch

import torch
from hypothesis import assume, currently_in_test_context
from models import LENGTH, VOCABULARY, Recipe
from torch import Tensor, nn

from minislice import fuse, perplexity, rotate, slice_model
from minislice.adapters import ROUNDING, align
from minislice.architecture.building import form_of
from minislice.architecture.network import network
from minislice.pca import RUN, covariance
from minislice.rotation import random_orthogonal

EXACT = 1e-10  # rounding of float64, amplified by a few layers
SAME_SUBSPACE = 1e-8  # two eigendecompositions agree up to rounding over the gap between eigenvalues


def logits(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the model computes for all tokens but padding, [tokens, vocabulary]."""
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask).logits
    return output.flatten(0, 1) if mask is None else output[mask.bool()]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_same_logits(actual: nn.Module, expected: nn.Module, recipe: Recipe, tolerance: float) -> None:
    ids, mask = recipe.tokens(seed=1), recipe.mask()
    error = relative_error(logits(actual, ids, mask), logits(expected, ids, mask))
    tolerance = max(tolerance, recipe.rounding)
    assert error <= tolerance, f"logits differ by {error:.1e}, more than {tolerance:.0e}"


def fused(recipe: Recipe) -> nn.Module:
    return fuse(recipe.model())


def assume_well_separated(model: nn.Module) -> None:
    """Where two eigenvalues meet at the cut, which of their vectors is kept is left to rounding: nothing to compare."""
    if not currently_in_test_context():
        return  # a fixed recipe, of which hypothesis knows nothing
    for eigenvalues, k in zip(model.slicing.eigenvalues, model.slicing.widths, strict=True):
        assume(k == len(eigenvalues) or (eigenvalues[k - 1] - eigenvalues[k]).abs() > 1e-4 * eigenvalues.max())


def sliced(recipe: Recipe, model: nn.Module | None = None, **options) -> nn.Module:
    """The recipe's model, sliced on the recipe's tokens: to half its width and with a head of its own, by default."""
    model = recipe.model() if model is None else model
    size = {} if options.keys() & {"slicing", "discard", "width"} else {"width": recipe.width // 2}
    return slice_model(model, recipe.tokens(), recipe.mask(), **{"head": "own", **size, **options})


def fusion_preserves_logits(recipe: Recipe) -> None:
    """Section 3.2. LLaMA's own norm computes in float32."""
    assert_same_logits(fused(recipe), recipe.model(), recipe, 1e-5 if recipe.norm_in_float32 else EXACT)


def rotation_preserves_logits(recipe: Recipe, per_block=False) -> None:
    """Theorem 1; with a rotation for each block, section 3.3."""
    assert_same_logits(rotate(recipe.model(), per_block=per_block, seed=recipe.seed), fused(recipe), recipe, EXACT)


def random_orthogonal_is_haar_and_seeded(recipe: Recipe) -> None:
    """Moments of the Haar distribution: E Q = 0, E q^2 = 1/D, E det Q = 0, E (tr Q)^2 = 1 (Diaconis, Shahshahani 1994).

    QR without the sign fix fails at the mean (LAPACK's signs are lopsided) and at the determinant (always the same).
    """
    D, draws = min(recipe.width, 6), 3000
    Q, again = (
        torch.stack([random_orthogonal(D, generator) for _ in range(draws)])
        for generator in (torch.Generator().manual_seed(recipe.seed) for _ in range(2))
    )
    assert torch.equal(Q, again)
    assert (Q.mT @ Q - torch.eye(D)).abs().max() <= 1e-12
    five_sigma = 5 / draws**0.5
    assert Q.mean(0).abs().max() < five_sigma / D**0.5
    assert (Q.square().mean(0) - 1 / D).abs().max() < five_sigma * 2**0.5 / D
    assert torch.linalg.det(Q).mean().abs() < five_sigma
    assert (Q.diagonal(dim1=1, dim2=2).sum(-1).square().mean() - 1).abs() < five_sigma * 2**0.5


def full_width_preserves_logits(recipe: Recipe, **options) -> None:
    actual = sliced(recipe, **(options or {"slicing": 0}))
    assert max(actual.slicing.discarded) <= EXACT
    assert_same_logits(actual, fused(recipe), recipe, EXACT)


def projected_logits(recipe: Recipe, widths: list[int], signal: str, carry: Callable | None = None) -> Tensor:
    """Eq. 9 by its definition, no matrix ever cut: X <- X P P^T after the embeddings and after every block.

    `carry` makes of the bases P of two boundaries the D x D matrix that the signal from before the block is multiplied
    by, in place of P P^T.
    """
    calibration, evaluation, mask, net = recipe.tokens(), recipe.tokens(seed=1), recipe.mask(), network(fused(recipe))
    mask = torch.ones_like(calibration).bool() if mask is None else mask.bool()
    with torch.no_grad():
        (x, contexts), (y, contexts_y) = net.embed(calibration, mask), net.embed(evaluation, mask)
        P, branch, branch_y = torch.eye(recipe.width, dtype=x.dtype), torch.zeros_like(x), torch.zeros_like(y)
        for boundary, k in enumerate(widths):
            rows = (x + branch)[mask]
            if signal == "normalized":
                rows = net.norms[boundary](rows)
            P_next = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, recipe.width - k :]
            project = P_next @ P_next.T
            before = carry(P, P_next) if carry else project
            x, y, P = x @ before + branch @ project, y @ before + branch_y @ project, P_next
            if boundary < len(net.blocks):
                block, layer = net.blocks[boundary], boundary // (len(net.blocks) // len(net.layers))
                branch, branch_y = block.branch(x, **contexts[layer]), block.branch(y, **contexts_y[layer])
        return recipe.logit_scale * net.head(net.final_norm(y))[mask]


def tied_head_is_exact(recipe: Recipe, **options) -> None:
    """At full width the logits are the dense model's, with the embedding's own matrix, untouched, in the head."""
    dense = recipe.model()
    model = sliced(recipe, head="tied", **(options or {"slicing": 0}))
    assert_same_logits(model, dense, recipe, 1e-5 if recipe.norm_in_float32 else EXACT)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, dense.get_input_embeddings().weight)


def fitted_head_is_least_squares(recipe: Recipe, **options) -> None:
    """Of all heads x -> (x H) E^T, E the sliced embedding, it is the nearest to the head of its own; a bias stays."""
    with patch("minislice.heads.ROWS", 50):
        own, fitted = (sliced(recipe, head=head, **options).get_output_embeddings() for head in ("own", "fitted"))
    best = torch.linalg.lstsq(fitted.weight, own.weight).solution
    assert relative_error(fitted.H.T, best) <= SAME_SUBSPACE
    assert own.bias is fitted.bias is None or torch.equal(own.bias, fitted.bias)


def slicing_is_projection(recipe: Recipe, adapter="full", carry: Callable | None = None, **options) -> None:
    """The sliced network, with adapters that are exact, computes eq. 9's: its signal projected between blocks."""
    model = sliced(recipe, adapter=adapter, **options)
    assume_well_separated(model)
    expected = projected_logits(recipe, model.slicing.widths, model.slicing.options.signal, carry)
    error = relative_error(logits(model, recipe.tokens(seed=1), recipe.mask()), expected)
    assert error <= max(SAME_SUBSPACE, recipe.rounding), f"logits differ from the projected network's by {error:.1e}"


def approximate_adapters_carry_close_directions_whole(recipe: Recipe, adapter="none", **options) -> None:
    """Along principal vectors the signal shrinks by their cosine, unless 1 - cosine is at most the tolerance."""

    def carry(P: Tensor, P_next: Tensor) -> Tensor:
        U, cosines, Vh = torch.linalg.svd(P.T @ P_next, full_matrices=False)
        cosines[1 - cosines <= max(options.get("tolerance", 1.0), ROUNDING)] = 1
        return P @ U @ cosines.diag() @ Vh @ P_next.T

    slicing_is_projection(recipe, adapter, carry, **options)


def alignment_makes_the_adapter_symmetric(recipe: Recipe, k=None, k_next=None, bases=None, exact=EXACT) -> None:
    """P^T P_next becomes [I - U diag(d) U^T, 0]: symmetric, positive semidefinite, in the same subspace.

    `bases` are k orthonormal columns, and an orthogonal matrix for the next boundary.
    """
    generator, k = torch.Generator().manual_seed(recipe.seed), k or 3 * recipe.width // 4
    P, Q_next = bases or [random_orthogonal(recipe.width, generator)[:, :size] for size in (k, recipe.width)]
    k = P.shape[1]
    k_next = k_next or k
    P_next, U, deficits = align(P, Q_next, k_next)
    S = P.T @ P_next
    identity = torch.eye(k_next, dtype=S.dtype)
    assert relative_error(P_next @ P_next.T, Q_next[:, :k_next] @ Q_next[:, :k_next].T) <= exact
    assert relative_error(P_next.T @ P_next, identity) <= exact
    assert relative_error(S[:, :k], S[:, :k].T) <= exact
    assert torch.linalg.eigvalsh(S[:, :k]).min() >= -exact
    assert k == k_next or S[:, k:].abs().max() <= exact
    assert (deficits.diff() <= 0).all()
    assert relative_error(identity[:k, :k] - U @ deficits.diag() @ U.T, S[:, :k]) <= exact


def adapters_have_the_parameters_of_the_formulas(recipe: Recipe, width=None, adapter="full", slice_head=False) -> None:
    """An adapter has k k_next parameters, or k r with r <= D - k directions whose cosine is below 1, or none."""
    k, D = width or recipe.width // 2, recipe.width
    last = k if slice_head else D
    model = sliced(recipe, width=k, adapter=adapter, slice_head=slice_head)
    net, report = network(model), model.slicing
    widths = [k] * len(net.blocks) + [last]
    assert report.widths == net.widths == widths
    forms = report.options.largest_adapters(D - net.subtracts_mean, widths)
    assert [form_of(block) for block in net.blocks] == forms
    ranks = [k if form == "full" else form or 0 for form in forms]
    assert report.ranks == ranks and max(ranks) <= {"full": k, "low-rank": D - k, "none": 0}[adapter]
    counts = [sum(p.numel() for p in block.adapter.parameters()) if block.adapter else 0 for block in net.blocks]
    assert counts == [k * number for number in (widths[1:] if adapter == "full" else ranks)]


def orientation_does_not_matter(recipe: Recipe, **options) -> None:
    """Neither of the basis within the subspace that is kept, nor of the model before it is sliced."""
    expected = sliced(recipe, **options)
    assume_well_separated(expected)
    turned = sliced(recipe, orientation="random", seed=recipe.seed, **options)
    rotated_before = sliced(recipe, rotate(recipe.model(), seed=recipe.seed), **options)
    for actual in (turned, rotated_before):
        assert_same_logits(actual, expected, recipe, SAME_SUBSPACE)


def covariance_is_summed_in_float64(recipe: Recipe, dtype=torch.float32) -> None:
    """Eq. 8, where the last tokens add less than float32's rounding of what the first ones have made."""
    exact = EXACT if dtype == torch.float64 else 1e-5
    generator = torch.Generator().manual_seed(recipe.seed)
    rows = torch.randn(2, RUN + 500, recipe.width, generator=generator).to(dtype)
    rows[0, :10] *= 1e3
    tokens = rows.double().flatten(0, 1)
    first = covariance(rows[0, :RUN])
    assert relative_error(first, tokens[:RUN].T @ tokens[:RUN]) <= exact
    assert relative_error(covariance(rows) - first, tokens[RUN:].T @ tokens[RUN:]) <= exact
    assert relative_error(covariance(rows, None, first.clone()) - first, tokens.T @ tokens) <= exact
    if recipe.padding != "none":
        mask = torch.rand(2, RUN + 500, generator=generator) < 0.5
        assert relative_error(covariance(rows, mask), rows[mask].double().T @ rows[mask].double()) <= exact


def variance_adds_up(recipe: Recipe, **options) -> None:
    """Kept plus discarded is the total, at every boundary; what is discarded are the smallest eigenvalues."""
    report = sliced(recipe, **options).slicing
    assert len(report.eigenvalues) == len(report.discarded) == len(report.widths)
    for eigenvalues, discarded, k in zip(report.eigenvalues, report.discarded, report.widths, strict=True):
        assert len(eigenvalues) == recipe.width
        assert (eigenvalues.diff() <= 0).all() and eigenvalues[-1] >= 0
        kept = (eigenvalues[:k].sum() / eigenvalues.sum()).item()
        assert abs(kept + discarded - 1) <= EXACT


def discard_keeps_the_least_that_suffices(recipe: Recipe, discard=0.1) -> None:
    """Appendix A.4: a boundary discards at most the fraction it may, and one column less would be too few."""
    report = sliced(recipe, discard=discard, multiple=1, slice_head=True).slicing
    for eigenvalues, discarded, k in zip(report.eigenvalues, report.discarded, report.widths, strict=True):
        assert discarded <= discard + EXACT
        assert eigenvalues[k - 1 :].sum() / eigenvalues.sum() > discard - EXACT


def padding_is_not_counted(recipe: Recipe) -> None:
    """A padded batch slices as its sequences do without the padding, and its tensors stay as they were."""
    ids, mask, width = recipe.tokens(), recipe.mask(), recipe.width // 2
    before = ids.clone(), mask.clone()
    actual = slice_model(recipe.model(), ids, mask, width=width)
    assert torch.equal(ids, before[0]) and torch.equal(mask, before[1])
    assert actual.slicing.calibration_tokens == mask.sum()
    sequences = [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]
    expected = slice_model(recipe.model(), sequences, width=width)
    assume_well_separated(expected)
    # Left padding shifts positions; transformers computes their sines and cosines in float32.
    shifted = recipe.padding == "left" and recipe.family != "opt"
    assert_same_logits(actual, expected, recipe, 1e-4 if shifted else SAME_SUBSPACE)
    tolerance = 1e-5 if shifted else EXACT
    assert math.isclose(perplexity(recipe.model(), ids, mask), perplexity(recipe.model(), sequences), rel_tol=tolerance)


def batches_do_not_matter(recipe: Recipe) -> None:
    """One tensor or a list, few sequences or rows of a matrix at a time or many: the same slices and perplexity."""
    ids, width = recipe.tokens(), recipe.width // 2
    expected = slice_model(recipe.model(), ids, width=width)
    assume_well_separated(expected)
    with patch("minislice.precision.ROWS", 7), patch("minislice.fusion.ROWS", 7):
        actual = slice_model(recipe.model(), [ids[:3], ids[3:]], width=width, batch_size=2)
    assert_same_logits(actual, expected, recipe, SAME_SUBSPACE)
    one, other = perplexity(recipe.model(), ids), perplexity(recipe.model(), [ids[:3], ids[3:]], batch_size=2)
    assert math.isclose(one, other, rel_tol=EXACT)


def perplexity_is_exp_of_transformers_loss(recipe: Recipe) -> None:
    """With padding on the right or none: transformers' loss leaves out what is labelled -100. Nothing is changed."""
    model, ids, mask = recipe.model(), recipe.tokens(), recipe.mask()
    found = perplexity(model, ids, mask)
    assert torch.equal(ids, recipe.tokens()) and (mask is None or torch.equal(mask, recipe.mask()))
    assert_same_logits(model, recipe.model(), recipe, 0.0)
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert math.isclose(found, math.exp(loss.item()), rel_tol=1e-5)  # its loss is in float32


def cached_generation_equals_uncached(
    recipe: Recipe, model: nn.Module | None = None, cache: str | None = None, **options
) -> None:
    """`cache` is transformers' name of another cache than the usual one."""
    model, mask = model or sliced(recipe, **options), recipe.mask()
    prompt = slice(5, None) if recipe.padding == "left" else slice(LENGTH // 2)
    ids = recipe.tokens(seed=1)[:, prompt]
    mask = torch.ones_like(ids) if mask is None else mask[:, prompt]
    asked = {"do_sample": False, "max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    cached = model.generate(ids, attention_mask=mask, cache_implementation=cache, **asked)
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **asked)
    assert cached.sequences.shape[1] == ids.shape[1] + 5
    assert torch.equal(cached.sequences, uncached.sequences)
    exact = max(1e-6 if recipe.softmax_in_float32 else EXACT, recipe.rounding)
    assert relative_error(torch.stack(cached.logits), torch.stack(uncached.logits)) <= exact
    assert cached.logits[0].shape[-1] == VOCABULARY
