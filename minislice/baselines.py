"""Bases other than the principal components, to compare with; nothing here is of the paper's method."""

import torch
from jaxtyping import Float64
from torch import Tensor

from .rotation import random_orthogonal


def choose_basis(
    Q: Float64[Tensor, "D D"],
    k: int,
    C: Float64[Tensor, "D D"],
    basis: str,
    orientation: str,
    generator: torch.Generator,
) -> Float64[Tensor, "D D"]:
    """An orthogonal matrix whose first k columns are to be kept: the principal components Q, or a baseline.

    Args:
        basis, orientation: see `options.SlicingOptions`.
    """
    if basis == "random":
        Q = random_orthogonal(len(C), generator).to(C.device)
    elif basis == "column-norm":
        Q = torch.eye(len(C), dtype=C.dtype, device=C.device)[:, C.diagonal().argsort(descending=True, stable=True)]
    if orientation == "random":
        Q = torch.cat([Q[:, :k] @ random_orthogonal(k, generator).to(Q.device), Q[:, k:]], dim=1)
    return Q
