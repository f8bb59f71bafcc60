"""Residual adapters in their three forms, over random models of all families."""

import adapter_properties as properties
import pytest
import torch
from models import FAMILIES, Recipe
from properties import sliced

from minislice.adapters import align, make_adapter
from minislice.architecture.blocks import LowRankAdapter
from minislice.rotation import random_orthogonal


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("cosines", [[0.5], [1e-5], [0.0, 0.0], [0.0, 0.3, 1e-4], [1 - 1e-9], [1.0]], ids=str)
def test_alignment_is_exact_at_every_angle(cosines, more):
    """Right angles leave the aligned basis undetermined, and angles near them nearly so."""
    recipe = Recipe("llama", hidden=12)
    properties.alignment_makes_the_adapter_symmetric(recipe, 8, 8 + more, cosines)


@pytest.mark.parametrize("family", FAMILIES)
def test_none_leaves_no_adapter_where_the_width_stays(family):
    assert properties.adapters(sliced(Recipe(family), width=6, slice_head=True, adapter="none")).count(None) >= 2


def test_low_rank_adapter_is_the_truncated_aligned_matrix():
    P, Q_next = properties.random_bases(Recipe("llama"), 12)
    _, U, deficits = align(P, Q_next, 12)
    kept = torch.where(deficits > 0.3, deficits, 0.0)
    P_next, adapter, _ = make_adapter(P, Q_next, 12, "low-rank", 0.3, like=P)
    assert 0 < adapter.rank == kept.count_nonzero() < len(deficits)
    identity = torch.eye(12, dtype=P.dtype)
    assert properties.relative_error(adapter(identity).detach(), identity - U @ kept.diag() @ U.T) <= properties.EXACT
    assert properties.relative_error(P_next, align(P, Q_next, 12)[0]) == 0


def test_growing_width_appends_zeros():
    P, Q_next = properties.random_bases(Recipe("llama"), 12)
    _, adapter, _ = make_adapter(P, Q_next, 15, "none", 0.0, like=P)
    x = torch.randn(2, 3, 12).double()
    assert isinstance(adapter, LowRankAdapter) and adapter.rank == 0
    assert torch.equal(adapter(x), torch.cat([x, torch.zeros(2, 3, 3)], dim=-1))


def test_shrinking_width_keeps_the_low_rank_adapter_whole():
    P, Q_next = properties.random_bases(Recipe("llama"), 15)
    P_next, adapter, _ = make_adapter(P, Q_next, 12, "low-rank", 0.0, like=P)
    assert torch.equal(P_next, Q_next[:, :12])
    assert torch.equal(adapter.weight, (P.T @ P_next).T)


def test_shrinking_width_cannot_be_aligned():
    P, Q_next = properties.random_bases(Recipe("llama"), 15)
    with pytest.raises(ValueError, match=r"12 columns with one of 15"):
        make_adapter(P, Q_next, 12, "none", 0.0, like=P)


def nearly_the_same(D: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A basis, and an orthogonal matrix that keeps its subspace but for rounding, in another order."""
    generator = torch.Generator().manual_seed(seed)
    P, R = random_orthogonal(D, generator).split([k, D - k], dim=1)
    Q_next = torch.cat([P @ random_orthogonal(k, generator), R], dim=1)
    return P, torch.linalg.qr(Q_next + 5e-14 * torch.randn(D, D, generator=generator, dtype=P.dtype)).Q


def assert_aligned(P: torch.Tensor, Q_next: torch.Tensor, k_next: int, tolerance: float) -> None:
    P_next, U, deficits = align(P, Q_next, k_next)
    k = P.shape[1]
    S, kept = P.T @ P_next, Q_next[:, :k_next]
    assert properties.relative_error(P_next @ P_next.T, kept @ kept.T) <= tolerance
    assert (S[:, :k] - (torch.eye(k, dtype=P.dtype) - U @ deficits.diag() @ U.T)).abs().max() <= tolerance
    assert k == k_next or S[:, k:].abs().max() <= tolerance


@pytest.mark.parametrize(
    ("k_next", "threads"), [(432, 1), (500, 1), (576, 1), pytest.param(432, 2, marks=pytest.mark.slow)]
)
def test_isometries_are_aligned(k_next, threads):
    """Hundreds of singular values of 1, to 5e-14: at such, LAPACK's decomposition of S has failed to converge."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_aligned(*nearly_the_same(576, 432, seed=0), k_next, 1e-10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cosines", "more"), [([0.5], 0), ([0.0, 0.3, 1e-4], 1), ([1.0], 0)], ids=str)
def test_alignment_does_without_a_decomposition_that_fails(cosines, more, monkeypatch):
    def fails(*_, **__):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    P, Q_next = properties.bases_at(cosines, 12, 8, 8 + more)
    assert_aligned(P, Q_next, 8 + more, 1e-7)


def test_bases_with_a_nan_are_refused_by_a_clear_error():
    P, Q_next = properties.random_bases(Recipe("llama"), 4)
    with pytest.raises(ValueError, match=r"P\^T Q, \[4, 20\], has a NaN"):
        align(P * torch.nan, Q_next, 6)


def test_the_whole_width_is_reached_without_any_decomposition(monkeypatch):
    """A basis that is completed: the last boundary of every default slicing."""
    monkeypatch.setattr(torch.linalg, "svd", None)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    P, Q_next = properties.random_bases(Recipe("llama"), 12)
    P_next, U, deficits = align(P, Q_next, Q_next.shape[0])
    assert torch.equal(P_next[:, :12], P) and U.shape == (12, 0) and len(deficits) == 0
    identity = torch.eye(len(P_next), dtype=P.dtype)
    assert properties.relative_error(P_next.T @ P_next, identity) <= properties.EXACT
