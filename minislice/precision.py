"""Which numbers are computed in which precision; nothing here is of the paper.

    eigendecompositions, bases, adapters     float64 (appendix A.2)
    fusion: scales, shifts, means            float64
    products of weights, W P                 float32, or float64 if the weights are
    covariances                              products float32, or float64 if the signal is; sums float64
    the signal                               the model's dtype, or that of the caller's autocast

Results are stored in the model's dtype. Where the caller allows TF32, it rounds the signal and nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
ROWS = 4096  # rows of a matrix that are in a wider dtype at one time: an embedding has many


def by_rows(
    product: Callable[[Float[Tensor, "some D"]], Float[Tensor, "some k"]],
    W: Float[Tensor, "rows D"],
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "rows k"]:
    """`product` of every row of W, computed in `dtype` and stored in W's."""
    result = None
    with without_tf32():
        for start in range(0, max(len(W), 1), ROWS):  # also if W has no rows: an MLP without neurons
            rows = product(W[start : start + ROWS].to(dtype))
            if result is None:
                result = W.new_empty(len(W), rows.shape[1])
            result[start : start + ROWS] = rows
    return result


@contextmanager
def without_tf32() -> Iterator[None]:
    """Products of float32 matrices with float32's precision, on a GPU and on a CPU, whatever the caller has allowed."""
    allowed = [products.fp32_precision for products in PRODUCTS]
    for products in PRODUCTS:
        products.fp32_precision = "ieee"
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for products, precision in zip(PRODUCTS, allowed, strict=True):
            products.fp32_precision = precision
