"""M2: write the check that tells a right rotation from eight wrong ones."""

import numpy as np

from .feedback import checker
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


def _adapter_missing(W_in, b_in, W_out, b_out, Q, Q_next):
    *weights, S = rotate_block(W_in, b_in, W_out, b_out, Q, Q_next)
    return *weights, np.eye(len(S))


def _one_rotation_for_both(W_in, b_in, W_out, b_out, Q, Q_next):
    return rotate_block(W_in, b_in, W_out, b_out, Q, Q)


def _rotated_twice(W_in, b_in, W_out, b_out, Q, Q_next):
    W, b, W_writes, b_writes, S = rotate_block(W_in, b_in, W_out, b_out, Q, Q_next)
    return W, b, W_writes @ Q_next, b_writes @ Q_next, S


def _not_rotated(W_in, b_in, W_out, b_out, Q, Q_next):
    return W_in, *rotate_block(W_in, b_in, W_out, b_out, Q, Q_next)[1:]


def _input_bias_of_a_square_rotated(W_in, b_in, W_out, b_out, Q, Q_next):
    W, b, *rest = rotate_block(W_in, b_in, W_out, b_out, Q, Q_next)
    return W, b @ Q if len(b) == len(Q) else b, *rest


TAKES = {"W_in": "DH", "b_in": "H", "W_out": "HD", "b_out": "D", "Q": "DD", "Q_next": "DD"}
SHOWN = (transposed, output_bias_not_rotated, adapter_transposed)
HIDDEN = (_adapter_missing, _one_rotation_for_both, _rotated_twice, _not_rotated, _input_bias_of_a_square_rotated)

M2 = read("m2", check=(TAKES, rotate_block, SHOWN, HIDDEN))
score = checker(M2)
