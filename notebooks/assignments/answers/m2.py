import numpy as np


def check(candidate, rng):
    """Raise an exception if the candidate is not a right `rotate_block`."""
    for D, H in ((4, 6), (5, 5)):
        W_in, b_in = rng.normal(size=(D, H)), rng.normal(size=H)
        W_out, b_out = rng.normal(size=(H, D)), rng.normal(size=D)
        Q, Q_next = (np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(2))
        W, b, W_writes, b_writes, S = candidate(W_in, b_in, W_out, b_out, Q, Q_next)
        x, h = rng.normal(size=(7, D)), rng.normal(size=(7, H))
        assert np.allclose(x @ Q @ W + b, x @ W_in + b_in)
        assert np.allclose(h @ W_writes + b_writes, (h @ W_out + b_out) @ Q_next)
        assert np.allclose(x @ Q @ S, x @ Q_next)
