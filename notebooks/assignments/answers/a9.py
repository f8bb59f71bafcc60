import numpy as np


def value_output(W_V, W_O, R):
    """W_V R, and the W_O that makes up for R. W_V [D, d], W_O [d, D], R [d, d]."""
    return W_V @ R, np.linalg.solve(R, W_O)


def rotary_pair(W_Q, W_K, angles, scales):
    """W_Q, whose pairs are rotated and scaled, and the W_K that makes up for it.

    W_Q, W_K [D, d]; angles, scales [d / 2].
    """
    turns = np.exp(1j * angles)  # a pair is a complex number

    def turned(W, factors):
        pairs = (W[:, 0::2] + 1j * W[:, 1::2]) * factors * turns
        return np.stack([pairs.real, pairs.imag], axis=2).reshape(W.shape)

    return turned(W_Q, scales), turned(W_K, 1 / scales)


def unchanged(A, B, F, G, beta, theta):
    """1.0 for each of the six candidates that leaves attention as it was, 0.0 for the others; [6].

    A, B, F, G [6, d, d], beta [6, d], theta [d / 2].
    """
    same, ones = np.eye(A.shape[1]), np.ones(len(theta))
    positions = [rotary_pair(same, same, n * theta, ones)[0] for n in range(3)]
    answers = []
    for a, b, f, g, constant in zip(A, B, F, G, beta, strict=True):
        values = np.allclose(f @ g, same, atol=1e-9)
        scores = all(np.allclose(a @ R @ b.T, R, atol=1e-9) for R in positions)
        answers.append(float(values and scores and not constant.any()))
    return np.array(answers)
