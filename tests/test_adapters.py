"""Residual adapters at given angles between the bases; over random models, `properties` says what they compute."""

import properties
import pytest
import torch
from models import Recipe
from torch import Tensor

from minislice.rotation import random_orthogonal

LLAMA = Recipe("llama")


def bases_at(cosines: list[float], D: int, k: int, k_next: int) -> tuple[Tensor, Tensor]:
    """As `properties.random_bases`, with these cosines of the principal angles to the next basis; the others are 1.

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


@pytest.mark.parametrize("k_next", [8, 9])
@pytest.mark.parametrize("cosines", [[0.5], [0.0, 0.3, 1e-5], [1 - 1e-9], [1.0]], ids=str)
def test_alignment_is_exact_at_every_angle(cosines, k_next):
    """Right angles leave the aligned basis undetermined, and angles near them nearly so."""
    properties.alignment_makes_the_adapter_symmetric(LLAMA, k_next=k_next, bases=bases_at(cosines, 12, 8, k_next))


def test_isometries_are_aligned():
    """Hundreds of singular values of 1, to 5e-14: at such, LAPACK's decomposition of S has failed to converge."""
    generator = torch.Generator().manual_seed(0)
    P, R = random_orthogonal(576, generator).split([432, 144], dim=1)
    Q_next = torch.cat([P @ random_orthogonal(432, generator), R], dim=1)
    rounding = 5e-14 * torch.randn(576, 576, generator=generator, dtype=P.dtype)
    bases = P, torch.linalg.qr(Q_next + rounding).Q
    properties.alignment_makes_the_adapter_symmetric(LLAMA, k_next=500, bases=bases)


def test_alignment_does_without_a_decomposition_that_fails(monkeypatch):
    def fails(*_, **__):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    bases = bases_at([0.0, 0.3, 1e-4], 12, 8, 9)
    properties.alignment_makes_the_adapter_symmetric(LLAMA, k_next=9, bases=bases, exact=1e-7)
