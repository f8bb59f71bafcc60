import numpy as np


def value_output(W_V, W_O, R):
    """W_V R, and the W_O that makes up for R. W_V [D, d], W_O [d, D], R [d, d]."""
    ### BEGIN SOLUTION
    return W_V @ R, np.linalg.solve(R, W_O)
    ### END SOLUTION


def rotary_pair(W_Q, W_K, angles, scales):
    """W_Q, whose pairs are rotated and scaled, and the W_K that makes up for it.

    W_Q, W_K [D, d]; angles, scales [d / 2].
    """
    ### BEGIN SOLUTION
    turned = []
    for W, factors in ((W_Q, scales), (W_K, 1 / scales)):
        a, b = W[:, 0::2], W[:, 1::2]
        pairs = np.empty_like(W)
        pairs[:, 0::2] = factors * (np.cos(angles) * a - np.sin(angles) * b)
        pairs[:, 1::2] = factors * (np.sin(angles) * a + np.cos(angles) * b)
        turned.append(pairs)
    return tuple(turned)
    ### END SOLUTION


def unchanged(A, B, F, G, beta, theta):
    """1.0 for each of the six candidates that leaves attention as it was, 0.0 for the others; [6].

    A, B, F, G [6, d, d], beta [6, d], theta [d / 2].
    """
    ### BEGIN SOLUTION
    d = A.shape[1]

    def positions(n):
        R = np.zeros((d, d))
        for j, angle in enumerate(n * theta):
            c, s = np.cos(angle), np.sin(angle)
            R[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [[c, s], [-s, c]]
        return R

    answers = []
    for a, b, f, g, constant in zip(A, B, F, G, beta, strict=True):
        values = np.allclose(f @ g, np.eye(d), atol=1e-9)
        scores = all(np.allclose(a @ positions(n) @ b.T, positions(n), atol=1e-9) for n in range(3))
        answers.append(float(values and scores and not constant.any()))
    return np.array(answers)
    ### END SOLUTION
