"""A head that was tied to the embedding stays tied.

Fusion gives a tied head weights of its own, because it absorbs the final norm's scale (section 3.2): a sliced model can
then have more parameters than the dense one. But the sliced head W [vocabulary, k_last] is nearly a linear map of the
sliced embedding E [vocabulary, k], so let the head be x -> (x H) E^T, with E stored once and H [k_last, k] the
least-squares solution of E H^T = W. Its bias, if any, is kept.

Every token counts alike in the fit.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from .architecture.blocks import TiedHead
from .precision import ROWS

HEADS = ("own", "tied")


def fit_tied_head(
    E: Float[Tensor, "vocabulary k"], W: Float[Tensor, "vocabulary k_last"]
) -> Float64[Tensor, "k_last k"]:
    """The H that makes E H^T nearest to W, a head's matrix as `nn.Linear` stores it; in float64."""
    EE = EW = 0
    for rows, targets in zip(E.split(ROWS), W.split(ROWS), strict=True):
        rows = rows.double()
        EE, EW = EE + rows.T @ rows, EW + rows.T @ targets.double()
    return (torch.linalg.pinv(EE, hermitian=True) @ EW).T  # E^T E is singular where k > vocabulary


def tie_head(head: nn.Linear, embedding: nn.Embedding) -> TiedHead:
    """A head that uses `embedding`'s matrix in place of its own."""
    H = fit_tied_head(embedding.weight, head.weight).to(head.weight)
    bias = None if head.bias is None else head.bias.detach().clone()
    return TiedHead(embedding, H, bias, requires_grad=head.weight.requires_grad)
