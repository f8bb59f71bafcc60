"""Beyond the paper: W_out solved for again, so that a block's output makes up for what slicing has lost before it.

The sliced network is walked beside the dense one. With H, w, C and B of `inner`, X the dense signal behind the block,
Z the sliced one before it, and lambda the share `RIDGE` of the mean of C's diagonal:

    W_out  <-  argmin_W || diag(w) (X - Z S - H W) ||^2 + lambda || W - W_out ||^2  =  W_out + (C + lambda I)^-1 B

Where nothing is lost B is zero, and W_out stays as it is. The matrix has as many parameters as before; the next
boundary's principal components are those of the repaired signal.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from .inner import with_ridge

RIDGE = 0.1  # on the embedded models little depends on it, between 1e-4 and 1 (tests/benchmarks/ridges.py)


def refit(C: Float64[Tensor, "n n"], B: Float64[Tensor, "n D"], ridge: float | None = None) -> Float64[Tensor, "n D"]:
    """What to add to W_out: (C + lambda I)^-1 B; lambda by `RIDGE` unless said otherwise."""
    return torch.cholesky_solve(B, torch.linalg.cholesky(with_ridge(C, RIDGE if ridge is None else ridge)))
