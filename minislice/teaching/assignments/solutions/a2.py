"""Answers to assignment A2."""

import numpy as np


def rms(x, eps):
    """RMSNorm of every row of x [N, D], without weights; eps is a small positive number. Returns [N, D]."""
    ### BEGIN SOLUTION
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + eps)
    ### END SOLUTION


def haar(G):
    """A random orthogonal matrix Q [D, D] made from G [D, D], whose entries are independent standard normal numbers."""
    ### BEGIN SOLUTION
    Q, R = np.linalg.qr(G)
    return Q * np.sign(np.diag(R))
    ### END SOLUTION


def counterexample(D):
    """Rows x [N, D], as few as you like, and an orthogonal Q [D, D] for which eq. 2 fails with a LayerNorm."""
    ### BEGIN SOLUTION
    x = np.zeros((1, D))
    x[0, :2] = 1, -1
    Q = np.eye(D)
    Q[:2, :2] = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)  # turns (1, -1, 0, ...) towards (1, 0, 0, ...) and beyond
    return x, Q
    ### END SOLUTION
