import numpy as np


def rms(x, eps):
    """RMSNorm of every row of x [N, D], without weights; eps > 0. Returns [N, D]."""
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + eps)


def haar(G):
    """A Haar-distributed Q [D, D], from G [D, D] of independent standard normal numbers."""
    Q, R = np.linalg.qr(G)
    return Q * np.sign(np.diag(R))


def counterexample(D):
    """Rows x [N, D], a few, and an orthogonal Q [D, D] that break eq. 2 for a LayerNorm."""
    x = np.zeros((1, D))
    x[0, :2] = 1, -1  # Q takes it to (sqrt(2), 0, 0, ...)
    Q = np.eye(D)
    Q[:2, :2] = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
    return x, Q
