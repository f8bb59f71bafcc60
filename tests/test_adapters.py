"""Residual adapters in their three forms, over random models of all families."""

import adapter_properties as properties
import pytest
import torch
from models import FAMILIES, Recipe
from properties import EXACT, relative_error, sliced

from minislice.adapters import align, make_adapter
from minislice.rotation import random_orthogonal

LLAMA = Recipe("llama")


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("cosines", [[0.5], [1e-5], [0.0, 0.0], [0.0, 0.3, 1e-4], [1 - 1e-9], [1.0]], ids=str)
def test_alignment_is_exact_at_every_angle(cosines, more):
    """Right angles leave the aligned basis undetermined, and angles near them nearly so."""
    bases = properties.bases_at(cosines, 12, 8, 8 + more)
    properties.alignment_makes_the_adapter_symmetric(LLAMA, k_next=8 + more, bases=bases)


@pytest.mark.parametrize("family", FAMILIES)
def test_none_leaves_no_adapter_where_the_width_stays(family):
    assert properties.adapters(sliced(Recipe(family), width=6, slice_head=True, adapter="none")).count(None) >= 2


def test_low_rank_adapter_is_the_truncated_aligned_matrix():
    P, Q_next = properties.random_bases(LLAMA, 12)
    aligned, U, deficits = align(P, Q_next, 12)
    kept = torch.where(deficits > 0.3, deficits, 0.0)
    P_next, adapter, _ = make_adapter(P, Q_next, 12, "low-rank", 0.3, like=P)
    assert 0 < adapter.rank == kept.count_nonzero() < len(deficits)
    identity = torch.eye(12, dtype=P.dtype)
    assert relative_error(adapter(identity).detach(), identity - U @ kept.diag() @ U.T) <= EXACT
    assert torch.equal(P_next, aligned)


def test_a_width_that_grows_gets_zeros_and_one_that_shrinks_a_full_adapter_or_none_at_all():
    P, Q_next = properties.random_bases(LLAMA, 15)
    x = torch.randn(2, 3, 12).double()
    _, adapter, _ = make_adapter(P[:, :12], Q_next, 15, "none", 0.0, like=P)
    assert adapter.rank == 0 and torch.equal(adapter(x), torch.cat([x, torch.zeros(2, 3, 3)], dim=-1))
    P_next, adapter, _ = make_adapter(P, Q_next, 12, "low-rank", 0.0, like=P)
    assert torch.equal(P_next, Q_next[:, :12]) and torch.equal(adapter.weight, (P.T @ P_next).T)
    with pytest.raises(ValueError, match=r"12 columns with one of 15"):
        make_adapter(P, Q_next, 12, "none", 0.0, like=P)


@pytest.mark.parametrize("k_next", [432, 500, 576])
def test_isometries_are_aligned(k_next):
    """Hundreds of singular values of 1, to 5e-14: at such, LAPACK's decomposition of S has failed to converge."""
    generator = torch.Generator().manual_seed(0)
    P, R = random_orthogonal(576, generator).split([432, 144], dim=1)
    Q_next = torch.cat([P @ random_orthogonal(432, generator), R], dim=1)
    rounding = 5e-14 * torch.randn(576, 576, generator=generator, dtype=P.dtype)
    bases = P, torch.linalg.qr(Q_next + rounding).Q
    properties.alignment_makes_the_adapter_symmetric(LLAMA, k_next=k_next, bases=bases)


@pytest.mark.parametrize(("cosines", "more"), [([0.5], 0), ([0.0, 0.3, 1e-4], 1), ([1.0], 0)], ids=str)
def test_alignment_does_without_a_decomposition_that_fails(cosines, more, monkeypatch):
    def fails(*_, **__):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    bases = properties.bases_at(cosines, 12, 8, 8 + more)
    properties.alignment_makes_the_adapter_symmetric(LLAMA, k_next=8 + more, bases=bases, exact=1e-7)


def test_bases_with_a_nan_are_refused_by_a_clear_error():
    P, Q_next = properties.random_bases(LLAMA, 4)
    with pytest.raises(ValueError, match=r"P\^T Q, \[4, 20\], has a NaN"):
        align(P * torch.nan, Q_next, 6)


def test_the_whole_width_is_reached_without_any_decomposition(monkeypatch):
    """A basis that is completed: the last boundary of every default slicing."""
    P, Q_next = properties.random_bases(LLAMA, 12)
    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, None)
    P_next, U, deficits = align(P, Q_next, Q_next.shape[0])
    assert torch.equal(P_next[:, :12], P) and U.shape == (12, 0) and len(deficits) == 0
    assert relative_error(P_next.T @ P_next, torch.eye(len(P_next), dtype=P.dtype)) <= EXACT
