import numpy as np


def cosines(P, R):
    """Cosines [k] of the principal angles between P [D, k] and R [D, k], descending."""
    return np.linalg.svd(P.T @ R, compute_uv=False)


def align(P, R):
    """The basis [D, k_next] of the span of R [D, k_next] that is nearest to P [D, k]."""
    k = P.shape[1]
    U, _, Vt = np.linalg.svd(P.T @ R)
    turn = Vt.T.copy()
    turn[:, :k] = turn[:, :k] @ U.T
    return R @ turn


def low_rank(P, R_aligned):
    """The adapter's A [k, r]; P [D, k], R_aligned [D, k_next], k <= k_next."""
    D, k = P.shape
    k_next = R_aligned.shape[1]
    cosines, U = np.linalg.eigh(P.T @ R_aligned[:, :k])
    r = min(k, D - k_next)
    deficits = np.clip(1 - cosines, 0, None)
    return U[:, :r] * np.sqrt(deficits[:r])
