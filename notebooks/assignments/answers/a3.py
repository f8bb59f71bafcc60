import numpy as np


def rotate(weights, Q):
    """The network whose signal is X Q[l] at boundary l, and its adapters. Same logits.

    weights: a dictionary of W_embd [V, D], W_pos [T, D] or None, W_in [B, D, H], b_in [B, H],
    W_out [B, H, D], b_out [B, D], W_out2 [B, H, D] or None, b_out2 [B, D] or None,
    W_head [D, V], b_head [V]. Q [B + 1, D, D]: orthogonal matrices.
    Returns a dictionary of the same kind, and S [B, D, D].
    """
    rotated = dict(weights)
    for name in ("W_embd", "W_pos"):
        if weights[name] is not None:
            rotated[name] = weights[name] @ Q[0]
    rotated["W_in"] = Q[:-1].transpose(0, 2, 1) @ weights["W_in"]
    for name in ("W_out", "W_out2"):
        if weights[name] is not None:
            rotated[name] = weights[name] @ Q[1:]
    for name in ("b_out", "b_out2"):
        if weights[name] is not None:
            rotated[name] = np.einsum("bd,bde->be", weights[name], Q[1:])
    rotated["W_head"] = Q[-1].T @ weights["W_head"]
    return rotated, Q[:-1].transpose(0, 2, 1) @ Q[1:]
