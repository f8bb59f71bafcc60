"""M1: write the check that tells a right fusion from eight wrong ones."""

from .exercise import MutationQuestion
from .markdown import read


def fuse_block(W_in, b_in, W_out, b_out, alpha, beta):
    """Move a LayerNorm's scale and shift into the block that reads it, and mean subtraction into what it writes."""
    W = alpha[:, None] * W_in
    b = beta @ W_in + (0 if b_in is None else b_in)
    return W, b, W_out - W_out.mean(1, keepdims=True), b_out - b_out.mean()


def scale_forgotten(W_in, b_in, W_out, b_out, alpha, beta):
    b = beta @ W_in + (0 if b_in is None else b_in)
    return W_in, b, W_out - W_out.mean(1, keepdims=True), b_out - b_out.mean()


def shift_through_scaled_weights(W_in, b_in, W_out, b_out, alpha, beta):
    W = alpha[:, None] * W_in
    b = beta @ W + (0 if b_in is None else b_in)
    return W, b, W_out - W_out.mean(1, keepdims=True), b_out - b_out.mean()


def output_bias_keeps_its_mean(W_in, b_in, W_out, b_out, alpha, beta):
    W = alpha[:, None] * W_in
    b = beta @ W_in + (0 if b_in is None else b_in)
    return W, b, W_out - W_out.mean(1, keepdims=True), b_out


def _writes(block, mean):
    W, b, _, bias = fuse_block(*block)
    return W, b, block[2] - mean, bias


def _square(W_in, b_in, W_out, b_out, alpha, beta):
    """The scale stands on the output side where W_in is square."""
    W, *others = fuse_block(W_in, b_in, W_out, b_out, alpha, beta)
    return W_in * alpha if W.shape[0] == W.shape[1] else W, *others


def _shift_lost(W_in, b_in, *others):
    W, b, *writes = fuse_block(W_in, b_in, *others)
    return W, 0 * b if b_in is None else b, *writes


SHOWN = (scale_forgotten, shift_through_scaled_weights, output_bias_keeps_its_mean)
HIDDEN = {
    "mean of the wrong axis": lambda *block: _writes(block, block[2].mean(0)),
    "mean of the whole matrix": lambda *block: _writes(block, block[2].mean()),
    "shift lost where there is no bias": _shift_lost,
    "scale on the output side of a square": _square,
    "done twice": lambda *block: fuse_block(*fuse_block(*block), *block[4:]),
}

M1, score = read("m1", check=MutationQuestion(fuse_block, SHOWN, HIDDEN))
