"""The facts about residual adapters (`minislice.adapters`), in the manner of `properties.py`."""

import torch
from models import Recipe
from properties import EXACT, assert_same_logits, fused, relative_error, sliced
from torch import Tensor, nn

from minislice import parameters
from minislice.adapters import align
from minislice.architecture.network import network
from minislice.rotation import random_orthogonal


def adapters(model: nn.Module) -> list[nn.Module | None]:
    return [block.adapter for block in network(model).blocks]


def random_bases(recipe: Recipe, k: int) -> tuple[Tensor, Tensor]:
    """A k-dimensional subspace of R^D, as orthonormal columns, and an orthogonal matrix for the next boundary."""
    generator = torch.Generator().manual_seed(recipe.seed)
    return random_orthogonal(recipe.width, generator)[:, :k], random_orthogonal(recipe.width, generator)


def bases_at(cosines: list[float], D: int, k: int, k_next: int) -> tuple[Tensor, Tensor]:
    """The same, with given cosines of the principal angles to the span of the next `k_next` columns; the others are 1.

    Needs D - k >= len(cosines) + k_next - k.
    """
    generator = torch.Generator().manual_seed(0)
    m, c = len(cosines), torch.tensor(cosines).double()
    P, R = random_orthogonal(D, generator).split([k, D - k], dim=1)
    s = (1 - c.square()).sqrt()
    kept = torch.cat([P[:, :m] * c + R[:, :m] * s, P[:, m:], R[:, m : m + k_next - k]], dim=1)
    deleted = torch.cat([R[:, :m] * c - P[:, :m] * s, R[:, m + k_next - k :]], dim=1)
    mixed = [part @ random_orthogonal(part.shape[1], generator) for part in (P, kept, deleted)]
    return mixed[0], torch.cat(mixed[1:], dim=1)


def adapter_has_unit_singular_values(recipe: Recipe, width=None) -> None:
    """Two k-dimensional subspaces of R^D meet in at least 2k - D dimensions, where the cosine of their angle is 1."""
    k = width or max(1, 3 * recipe.width // 4)
    for S in adapters(sliced(recipe, width=k, slice_head=True, adapter="full")):
        cosines = torch.linalg.svdvals(S.weight)
        assert cosines.max() <= 1 + EXACT
        assert int(((cosines - 1).abs() <= EXACT).sum()) >= 2 * k - recipe.width


def alignment_makes_the_adapter_symmetric(recipe: Recipe, k=None, k_next=None, bases=None, exact=EXACT) -> None:
    """P^T P_next becomes [I - U diag(d) U^T, 0]: symmetric, positive semidefinite, in the same subspace."""
    P, Q_next = bases or random_bases(recipe, k or max(1, 3 * recipe.width // 4))
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


def exact_low_rank_equals_full(recipe: Recipe, **options) -> None:
    actual, expected = (sliced(recipe, adapter=form, tolerance=0.0, **options) for form in ("low-rank", "full"))
    assert_same_logits(actual, expected, recipe, EXACT)


def rank_is_at_most_what_was_deleted(recipe: Recipe, **options) -> None:
    """At most D - k directions have a cosine below 1; a tolerance leaves fewer, and 1 leaves none."""
    options = {"slice_head": True, "adapter": "low-rank", **options}
    exact, *others = (sliced(recipe, tolerance=tolerance, **options).slicing for tolerance in (0.0, 0.1, 1.0))
    k = exact.widths[0]
    assert all(0 <= rank <= min(recipe.width - k, k) for rank in exact.ranks)
    # Only the first adapter sees the same bases whatever the tolerance: later ones follow what it lost.
    assert exact.ranks[0] >= others[0].ranks[0]
    assert not any(others[1].ranks)


def none_equals_every_direction_dropped(recipe: Recipe, **options) -> None:
    """No cosine deficit exceeds 1."""
    actual = sliced(recipe, adapter="none", **options)
    expected = sliced(recipe, adapter="low-rank", tolerance=1.0, **options)
    assert_same_logits(actual, expected, recipe, EXACT)
    assert parameters(actual) == parameters(expected)


def parameter_counts_follow_the_formulas(recipe: Recipe, width=None, adapter="full", slice_head=False) -> None:
    k, D = width or recipe.width // 2, recipe.width
    net, model = network(fused(recipe)), sliced(recipe, width=k, adapter=adapter, slice_head=slice_head)
    last = k if slice_head else D
    widths = [k] * len(net.blocks) + [last]
    assert model.slicing.widths == network(model).widths == widths

    counts = [0 if S is None else sum(p.numel() for p in S.parameters()) for S in adapters(model)]
    ranks = model.slicing.ranks
    if adapter == "full":
        assert counts == [k * k] * (len(counts) - 1) + [k * last]
    else:
        assert counts == [k * rank for rank in ranks]
        assert max(ranks) <= (D - k if adapter == "low-rank" else 0)

    deleted = sum(table.num_embeddings for table in net.embeddings) * (D - k) + net.head.out_features * (D - last)
    for block, k_in, k_out in zip(net.blocks, widths[:-1], widths[1:], strict=True):
        deleted += sum(linear.out_features for linear in block.w_in) * (D - k_in)
        deleted += sum(linear.in_features + (linear.bias is not None) for linear in block.w_out) * (D - k_out)
    assert parameters(model) == parameters(net.model) - deleted + sum(counts)
