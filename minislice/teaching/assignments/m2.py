"""M2: write the check that tells a right rotation from eight wrong ones."""

import numpy as np

from .exercise import MutationQuestion
from .markdown import read


def rotate_block(W_in, b_in, W_out, b_out, Q, Q_next):
    """Rotate what a block reads by Q and what it writes by Q_next; S is its residual adapter."""
    return Q.T @ W_in, b_in, W_out @ Q_next, b_out @ Q_next, Q.T @ Q_next


def transposed(W_in, b_in, W_out, b_out, Q, Q_next):
    return Q @ W_in, b_in, W_out @ Q_next, b_out @ Q_next, Q.T @ Q_next


def output_bias_not_rotated(W_in, b_in, W_out, b_out, Q, Q_next):
    return Q.T @ W_in, b_in, W_out @ Q_next, b_out, Q.T @ Q_next


def adapter_transposed(W_in, b_in, W_out, b_out, Q, Q_next):
    return Q.T @ W_in, b_in, W_out @ Q_next, b_out @ Q_next, Q_next.T @ Q


def _rotated_twice(W_in, b_in, W_out, b_out, Q, Q_next):
    return rotate_block(W_in, b_in, W_out @ Q_next, b_out @ Q_next, Q, Q_next)


def _input_bias_rotated(W_in, b_in, *others):
    return rotate_block(W_in, b_in @ others[2] if len(W_in) == len(b_in) else b_in, *others)


SHOWN = (transposed, output_bias_not_rotated, adapter_transposed)
HIDDEN = {
    "adapter missing": lambda *block: (*rotate_block(*block)[:4], np.eye(len(block[4]))),
    "one rotation for both": lambda *block: rotate_block(*block[:5], block[4]),
    "rotated twice": _rotated_twice,
    "not rotated": lambda *block: (block[0], *rotate_block(*block)[1:]),
    "input bias of a square rotated": _input_bias_rotated,
}

M2, score = read("m2", check=MutationQuestion(rotate_block, SHOWN, HIDDEN))
