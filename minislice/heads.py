"""A tied head, which shares its matrix with the embedding, can go on sharing it.

In the paper fusion gives such a head weights of its own, because the head absorbs the final norm's scale (section
3.2). A sliced model can then have more parameters than the dense one.

`tied` is exact. The first and the last boundary stay whole, in the model's own basis (P = I). The embedding is E, and
the head with the final norm's scale and shift is x -> (x diag(alpha) + beta) E^T: E is stored once. In a LayerNorm
model the embedding subtracts the mean when it is read. The widths are D, k, ..., k, D, and the first and the last
block have full adapters. This is the default for a model with a tied head.

`fitted` slices the embedding too, and is an approximation. The sliced head W [vocabulary, k_last] is nearly a linear
map of the sliced embedding E [vocabulary, k]. So the head becomes x -> (x H) E^T, where H [k_last, k] is the
least-squares solution of E H^T = W. Every token counts the same.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from .architecture.heads import CentredEmbedding, FittedHead, TiedHead
from .architecture.network import Network
from .precision import ROWS

HEADS = ("own", "tied", "fitted")


def tie_obstacle(net: Network) -> str | None:
    """Why a network's head can't go on sharing the embedding's matrix exactly; None where it can."""
    if not net.head_was_tied:
        return "it doesn't share the embedding's matrix"
    if net.is_fused and not isinstance(net.head, TiedHead):
        return "fusion has given it weights of its own; start again from the trained model"
    if net.embedding_norm is not None:
        return "a norm stands after the embedding, and fusion puts it into the matrix"
    if net.subtracts_mean and type(net.embeddings[0]) not in (nn.Embedding, CentredEmbedding):
        return f"the embedding, a {type(net.embeddings[0]).__name__}, can't subtract the mean as well"
    return None


def require_tie(net: Network) -> None:
    """Raise a ValueError for a network whose head can't go on sharing the embedding's matrix exactly."""
    if obstacle := tie_obstacle(net):
        raise ValueError(f"this model's head can't stay tied: {obstacle}")


def tie_embedding(net: Network) -> None:
    """Have the embedding subtract the mean itself, in place, if the model's norms would; its matrix stays."""
    require_tie(net)
    if net.subtracts_mean:
        net.embeddings[0].__class__ = CentredEmbedding  # the same module, its matrix still shared


def tie_head(net: Network) -> None:
    """A head that is the final norm's scale and shift, and the embedding's matrix as trained, in place."""
    norm, like = net.final_norm, net.head.weight
    alpha, beta = net.family.norm.scale_of(norm), getattr(norm, "bias", None)
    alpha = like.new_ones(like.shape[1]) if alpha is None else alpha.to(like.dtype)
    net.head = TiedHead(net.embeddings[0], like.requires_grad, alpha=alpha, beta=beta, bias=net.head.bias)


def fitted_map(E: Float[Tensor, "vocabulary k"], W: Float[Tensor, "vocabulary k_last"]) -> Float64[Tensor, "k_last k"]:
    """The H that makes E H^T nearest to W, a head's matrix as `nn.Linear` stores it; in float64."""
    EE = EW = 0
    for rows, targets in zip(E.split(ROWS), W.split(ROWS), strict=True):
        rows = rows.double()
        EE, EW = EE + rows.T @ rows, EW + rows.T @ targets.double()
    return (torch.linalg.pinv(EE, hermitian=True) @ EW).T  # E^T E is singular where k > vocabulary


def fit_head(head: nn.Linear, embedding: nn.Embedding) -> FittedHead:
    """A head that uses the sliced embedding's matrix in place of its own."""
    H = fitted_map(embedding.weight, head.weight).to(head.weight)
    return FittedHead(embedding, head.weight.requires_grad, H=H, bias=head.bias)
