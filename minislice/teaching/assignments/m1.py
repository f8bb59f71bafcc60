"""M1: write the check that tells a right fusion from eight wrong ones."""

import numpy as np

from .feedback import checker
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


def _mean_of_the_wrong_axis(W_in, b_in, W_out, b_out, alpha, beta):
    W, b, _, bias = fuse_block(W_in, b_in, W_out, b_out, alpha, beta)
    return W, b, W_out - W_out.mean(0), bias


def _mean_of_the_whole_matrix(W_in, b_in, W_out, b_out, alpha, beta):
    W, b, _, bias = fuse_block(W_in, b_in, W_out, b_out, alpha, beta)
    return W, b, W_out - W_out.mean(), bias


def _shift_lost_where_there_is_no_bias(W_in, b_in, W_out, b_out, alpha, beta):
    W, b, *writes = fuse_block(W_in, b_in, W_out, b_out, alpha, beta)
    return W, np.zeros_like(b) if b_in is None else b, *writes


def _scale_on_the_output_side_of_a_square(W_in, b_in, W_out, b_out, alpha, beta):
    W, b, *writes = fuse_block(W_in, b_in, W_out, b_out, alpha, beta)
    return W_in * alpha if W.shape[0] == W.shape[1] else W, b, *writes


def _done_twice(W_in, b_in, W_out, b_out, alpha, beta):
    return fuse_block(*fuse_block(W_in, b_in, W_out, b_out, alpha, beta), alpha, beta)


TAKES = {"W_in": "DH", "b_in": "H", "W_out": "HD", "b_out": "D", "alpha": "D", "beta": "D"}
SHOWN = (scale_forgotten, shift_through_scaled_weights, output_bias_keeps_its_mean)
HIDDEN = (
    _mean_of_the_wrong_axis,
    _mean_of_the_whole_matrix,
    _shift_lost_where_there_is_no_bias,
    _scale_on_the_output_side_of_a_square,
    _done_twice,
)

M1 = read("m1", check=(TAKES, fuse_block, SHOWN, HIDDEN))
score = checker(M1)
