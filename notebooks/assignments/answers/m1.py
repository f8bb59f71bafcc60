import numpy as np


def check(candidate, rng):
    """Raise an exception if the candidate is not a right `fuse_block`."""
    for D, H, bias in ((4, 6, True), (5, 3, False), (4, 4, True)):
        W_in, W_out = rng.normal(size=(D, H)), rng.normal(size=(H, D))
        b_in, b_out = rng.normal(size=H) if bias else None, rng.normal(size=D)
        alpha, beta = rng.normal(size=D), rng.normal(size=D)
        W, b, W_writes, b_writes = candidate(W_in, b_in, W_out, b_out, alpha, beta)
        x, h = rng.normal(size=(7, D)), rng.normal(size=(7, H))
        assert np.allclose(x @ W + b, (x * alpha + beta) @ W_in + (b_in if bias else 0))
        written = h @ W_out + b_out
        assert np.allclose(h @ W_writes + b_writes, written - written.mean(axis=1, keepdims=True))
