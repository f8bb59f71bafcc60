import numpy as np


def parameters(shapes, k, form):
    """The number of parameters of a sliced network.

    shapes: a dictionary of the ints V, T (0 without positions) and D, of blocks, a list of
    [H_in, H_out], and of biases, a bool. k: the width of every boundary but the last, which
    keeps D. form: "full", "low-rank" or "none". Returns an int.
    """
    V, T, D, blocks = shapes["V"], shapes["T"], shapes["D"], shapes["blocks"]
    total = (V + T) * k + D * V
    for block, (H_in, H_out) in enumerate(blocks):
        k_next = D if block == len(blocks) - 1 else k
        total += k * H_in + H_out * k_next
        if shapes["biases"]:
            total += H_in + k_next
        if form == "full":
            total += k * k_next
        if form == "low-rank":
            total += k * min(k, D - k_next)
    return total


def flops(shapes, k, form):
    """The operations of all matrix products for one token; an int. See `parameters`."""
    matrices = {**shapes, "T": 0, "biases": False}
    used = parameters(matrices, k, form) - shapes["V"] * k  # an embedding is looked up
    if form == "low-rank":  # x A, then that times A^T
        used += parameters(matrices, k, "low-rank") - parameters(matrices, k, "none")
    return 2 * used


def gib(parameters, bits):
    """The GiB that so many parameters of so many bits take; a float."""
    return parameters * bits / 8 / 2**30


def break_even(n):
    """The share of D to delete until a block of n D^2 parameters is as large as before."""
    return 1 - (np.sqrt(n**2 + 4 * n) - n) / 2
