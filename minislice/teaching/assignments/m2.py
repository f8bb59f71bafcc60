"""M2: write the check that tells a right rotation from eight wrong ones."""

import numpy as np

from .exercise import Assignment, MutationQuestion
from .feedback import checker


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


M2 = Assignment(
    name="m2",
    title="Catch it: rotation",
    goal="write a test of rotation that a wrong rotation does not pass",
    before="A2, A3",
    difficulty=2,
    notation="A test that draws its inputs badly passes what it should catch: some mistakes show on some inputs only.",
    questions=(
        MutationQuestion(
            name="check",
            points=8,
            minutes=30,
            difficulty=2,
            text=r"""Write `check(candidate, rng)`. It calls the candidate with arguments of your choice, drawn from
the NumPy generator `rng`, and raises an exception (an `assert` will do) if what comes back is wrong. The right
function takes `W_in [D, H]`, `b_in [H]`, `W_out [H, D]`, `b_out [D]` and orthogonal `Q`, `Q_next [D, D]`. It returns
$W'_\mathrm{in}, b'_\mathrm{in}, W'_\mathrm{out}, b'_\mathrm{out}, S$ such that, for every row $x$ of the signal and all
neurons $h$,

$$(x Q)\, W'_\mathrm{in} + b'_\mathrm{in} = x W_\mathrm{in} + b_\mathrm{in}, \qquad
h W'_\mathrm{out} + b'_\mathrm{out} = (h W_\mathrm{out} + b_\mathrm{out})\, Q_\mathrm{next}, \qquad
(x Q)\, S = x\, Q_\mathrm{next}$$""",
            hints=(
                "Write the three equations down with random x and h, and compare both sides with np.allclose.",
                "With Q = I, or a symmetric Q, or Q_next = Q, some mistakes can't be seen. Nor with b_out = 0.",
                "Which sizes may be equal? Try that as well.",
            ),
            takes={"W_in": "DH", "b_in": "H", "W_out": "HD", "b_out": "D", "Q": "DD", "Q_next": "DD"},
            reference=rotate_block,
            shown={
                function.__name__: function for function in (transposed, output_bias_not_rotated, adapter_transposed)
            },
            hidden={
                function.__name__.strip("_"): function
                for function in (
                    _adapter_missing,
                    _one_rotation_for_both,
                    _rotated_twice,
                    _not_rotated,
                    _input_bias_of_a_square_rotated,
                )
            },
        ),
    ),
)

score = checker(M2)
