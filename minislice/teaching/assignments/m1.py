"""M1: write the check that tells a right fusion from eight wrong ones."""

import numpy as np

from .exercise import Assignment, MutationQuestion
from .feedback import checker


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


M1 = Assignment(
    name="m1",
    title="Catch it: fusion",
    goal="write a test of fusion that a wrong fusion does not pass",
    before="A1",
    difficulty=2,
    notation="""A test that passes is worth what it would catch. Here you don't write the function, but its test.""",
    questions=(
        MutationQuestion(
            name="check",
            points=8,
            minutes=30,
            difficulty=2,
            text=r"""Write `check(candidate, rng)`. It calls the candidate with arguments of your choice, drawn from
the NumPy generator `rng`, and raises an exception (an `assert` will do) if what comes back is wrong. The right
function takes `W_in [D, H]`, `b_in [H]` or `None`, `W_out [H, D]`, `b_out [D]`, `alpha [D]`, `beta [D]`, and returns
four arrays $W'_\mathrm{in}, b'_\mathrm{in}, W'_\mathrm{out}, b'_\mathrm{out}$ such that, for every normalised row $x$
and all neurons $h$,

$$x W'_\mathrm{in} + b'_\mathrm{in} = (x\,\mathrm{diag}(\alpha) + \beta)\, W_\mathrm{in} + b_\mathrm{in}, \qquad
h W'_\mathrm{out} + b'_\mathrm{out} = (h W_\mathrm{out} + b_\mathrm{out})\, M$$

where $M$ subtracts a row's mean.""",
            hints=(
                "Write the two equations down with random x and h, and compare both sides with np.allclose.",
                "Try all the arguments that the function allows: what may be None, which sizes may be equal?",
                "A matrix whose rows have mean zero need not be W_out M: compare values, not means.",
            ),
            takes={"W_in": "DH", "b_in": "H", "W_out": "HD", "b_out": "D", "alpha": "D", "beta": "D"},
            reference=fuse_block,
            shown={
                function.__name__: function
                for function in (scale_forgotten, shift_through_scaled_weights, output_bias_keeps_its_mean)
            },
            hidden={
                function.__name__.strip("_"): function
                for function in (
                    _mean_of_the_wrong_axis,
                    _mean_of_the_whole_matrix,
                    _shift_lost_where_there_is_no_bias,
                    _scale_on_the_output_side_of_a_square,
                    _done_twice,
                )
            },
        ),
    ),
)

score = checker(M1)
