import numpy as np


def check(candidate, rng):
    """Raise an exception if the candidate does not return principal components."""
    for N, D, k in ((29, 5, 3), (43, 6, 6)):
        X = rng.normal(size=(N, D)) + 1
        mask = rng.permutation(N) % 5 > 0
        eigenvalues, P = candidate(X, mask, k)
        C = sum(np.outer(x, x) for x in X[mask])
        assert P.shape == (D, k) and eigenvalues.shape == (D,)
        assert np.allclose(P.T @ P, np.eye(k), atol=1e-10)
        assert np.allclose(C @ P, P * eigenvalues[:k], rtol=0, atol=1e-9 * np.trace(C))
        assert np.isclose(eigenvalues.sum(), np.trace(C), rtol=1e-10)
        assert (np.diff(eigenvalues) <= 0).all()
