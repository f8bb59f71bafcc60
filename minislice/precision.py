"""In which precision weights and covariances are computed: nothing here is of the paper.

Eigendecompositions are in float64 (appendix A.2). A product of weights is in float32 at least, and in float64 where the
weights are: more bits than the result keeps. The signal has the model's dtype. No setting of the caller's changes that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
ROWS = 4096  # of a matrix that are in a wider dtype at one time: a vocabulary has many


def by_rows(
    product: Callable[[Float[Tensor, "some D"]], Float[Tensor, "some k"]],
    W: Float[Tensor, "rows D"],
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "rows k"]:
    """The product of every row of W, computed in `dtype`, in W's dtype."""
    result = None
    with without_tf32():
        for start in range(0, max(len(W), 1), ROWS):  # also of no rows, where an MLP has no neurons left
            rows = product(W[start : start + ROWS].to(dtype))
            if result is None:
                result = W.new_empty(len(W), rows.shape[1])
            result[start : start + ROWS] = rows
    return result


@contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 products of float32's precision, on a GPU and on a CPU, whatever the caller has allowed.

    torch has older names for these settings, and raises where they are read after the newer ones, used here, were set.
    """
    allowed = [products.fp32_precision for products in PRODUCTS]
    for products in PRODUCTS:
        products.fp32_precision = "ieee"
    try:
        yield
    finally:
        for products, precision in zip(PRODUCTS, allowed, strict=True):
            products.fp32_precision = precision
