"""Answers to A4."""

import numpy as np
from answers import right, wrong

# second_moment


@right("a4.second_moment")
def batch_by_batch(batches, masks):
    C = np.zeros((batches[0].shape[1],) * 2)
    for x, mask in zip(batches, masks, strict=True):
        C += x[mask].T @ x[mask]
    return C


@right("a4.second_moment")
def zeros_for_padding(batches, masks):
    return sum((x * mask[:, None]).T @ (x * mask[:, None]) for x, mask in zip(batches, masks, strict=True))


@right("a4.second_moment")
def weighted(batches, masks):
    return sum(x.T @ np.diag(mask.astype(float)) @ x for x, mask in zip(batches, masks, strict=True))


@right("a4.second_moment")
def einsum(batches, masks):
    return sum(np.einsum("nd,ne->de", x[mask], x[mask]) for x, mask in zip(batches, masks, strict=True))


@right("a4.second_moment")
def einsum_with_the_mask(batches, masks):
    return np.add.reduce([np.einsum("nd,ne,n->de", x, x, m) for x, m in zip(batches, masks, strict=True)])


@right("a4.second_moment")
def token_by_token(batches, masks):
    C = 0
    for x, mask in zip(batches, masks, strict=True):
        for row, token in zip(x, mask, strict=True):
            if token:
                C = C + np.outer(row, row)
    return C


@right("a4.second_moment")
def entry_by_entry(batches, masks):
    tokens = np.vstack([x[np.flatnonzero(mask)] for x, mask in zip(batches, masks, strict=True)])
    D = tokens.shape[1]
    return np.array([[float(tokens[:, i] @ tokens[:, j]) for j in range(D)] for i in range(D)])


@right("a4.second_moment")
def from_singular_values(batches, masks):
    tokens = np.concatenate([x[mask] for x, mask in zip(batches, masks, strict=True)])
    _, sigma, Vt = np.linalg.svd(tokens, full_matrices=False)
    return (Vt.T * sigma**2) @ Vt


@right("a4.second_moment")
def one_triangle_mirrored(batches, masks):
    tokens = np.concatenate(batches)[np.concatenate(masks)]
    C = np.triu(np.inner(tokens.T, tokens.T))
    return C + C.T - np.diag(np.diag(C))


# pca


@right("a4.pca")
def flipped(C):
    eigenvalues, Q = np.linalg.eigh(C)
    return np.flip(eigenvalues), np.flip(Q, axis=1)


@right("a4.pca")
def sorted_by_hand(C):
    eigenvalues, Q = np.linalg.eigh(C)
    order = np.argsort(-eigenvalues)
    return eigenvalues[order], Q[:, order]


@right("a4.pca")
def singular_values(C):
    U, sigma, _ = np.linalg.svd(C)
    return sigma, U


@right("a4.pca")
def right_singular_vectors(C):
    _, sigma, Vt = np.linalg.svd(C)
    return sigma, Vt.T


@right("a4.pca")
def other_signs(C):
    eigenvalues, Q = np.linalg.eigh(C)
    return eigenvalues[::-1].copy(), -Q[:, ::-1] * np.sign(Q[0, ::-1] + 1e-300)


@right("a4.pca")
def of_the_negative(C):
    eigenvalues, Q = np.linalg.eigh(-C)
    return -eigenvalues, Q


@right("a4.pca")
def upper_triangle_and_clipped(C):
    eigenvalues, Q = np.linalg.eigh(C, UPLO="U")
    return np.maximum(eigenvalues, 0)[::-1], Q[:, ::-1]


@right("a4.pca")
def jacobi(C):
    A, Q = C.copy(), np.eye(len(C))
    for _ in range(12):
        for i in range(len(C)):
            for j in range(i + 1, len(C)):
                angle = 0.5 * np.arctan2(2 * A[i, j], A[i, i] - A[j, j])
                J = np.eye(len(C))
                J[[i, j], [i, j]] = np.cos(angle)
                J[i, j], J[j, i] = -np.sin(angle), np.sin(angle)
                A, Q = J.T @ A @ J, Q @ J
    order = np.argsort(np.diag(A))[::-1]
    return np.diag(A)[order], Q[:, order]


@right("a4.pca")
def as_a_list(C):
    pairs = [(value, vector) for value, vector in zip(*(part.T for part in np.linalg.eigh(C)), strict=True)]
    pairs.sort(key=lambda pair: -pair[0])
    return [np.array([value for value, _ in pairs]), np.stack([vector for _, vector in pairs], axis=1)]


# width

right("a4.width")(lambda lam, share: int(np.searchsorted(np.cumsum(lam), share * np.sum(lam))) + 1)
right("a4.width")(lambda lam, share: int(np.argmax(np.cumsum(lam) >= share * lam.sum())) + 1)
right("a4.width")(lambda lam, share: next(k for k in range(1, len(lam) + 1) if lam[:k].sum() >= share * lam.sum()))
right("a4.width")(lambda lam, share: 1 + sum(1 for held in np.cumsum(lam) if held < share * sum(lam)))
right("a4.width")(lambda lam, share: np.count_nonzero(np.cumsum(lam) < share * np.sum(lam)) + 1)
right("a4.width")(lambda lam, share: np.min(np.nonzero(np.cumsum(lam) >= share * np.sum(lam))[0]) + 1)
right("a4.width")(
    lambda lam, share: min(k + 1 for k, held in enumerate(np.add.accumulate(lam)) if held >= share * lam.sum())
)


@right("a4.width")
def while_loop(eigenvalues, share):
    k, held = 0, 0.0
    while held < share * np.sum(eigenvalues):
        held += eigenvalues[k]
        k += 1
    return k


@right("a4.width")
def from_the_end(eigenvalues, share):
    k = len(eigenvalues)
    while k > 1 and np.sum(eigenvalues[: k - 1]) >= share * np.sum(eigenvalues):
        k -= 1
    return k


# Wrong answers


@wrong("a4.second_moment", "C:", "It is centred")
def centred(batches, masks):
    tokens = np.concatenate(batches)[np.concatenate(masks)]
    tokens = tokens - tokens.mean(axis=0)
    return tokens.T @ tokens


@wrong("a4.second_moment", "C:", "a mean for each batch")
def mean_for_each_batch(batches, masks):
    return sum(x[m].T @ x[m] / m.sum() for x, m in zip(batches, masks, strict=True) if m.any())


@wrong("a4.second_moment", "C:", "Padding is counted")
def padding_counted(batches, masks):
    return sum(x.T @ x for x in batches)


@wrong("a4.second_moment", "C:", "float32")
def sums_in_float32(batches, masks):
    tokens = np.concatenate(batches)[np.concatenate(masks)].astype(np.float32)
    return (tokens.T @ tokens).astype(np.float64)


@wrong("a4.second_moment", "C: expected float64 [2, 2], got float32 [2, 2]")
def result_in_float32(batches, masks):
    tokens = np.concatenate(batches)[np.concatenate(masks)].astype(np.float32)
    return tokens.T @ tokens


@wrong("a4.second_moment", "C:", "divided by the number of tokens")
def mean_over_tokens(batches, masks):
    tokens = np.concatenate(batches)[np.concatenate(masks)]
    return tokens.T @ tokens / len(tokens)


@wrong("a4.pca", "lambda:", "It is ascending", "Q ok")
def ascending(C):
    eigenvalues, Q = np.linalg.eigh(C)
    return eigenvalues, Q


@wrong("a4.pca", "lambda, Q:", "opposite order")
def only_eigenvalues_turned_round(C):
    eigenvalues, Q = np.linalg.eigh(C)
    return eigenvalues[::-1], Q


@wrong("a4.pca", "lambda, Q:", "eigenvectors are the rows")
def rows_for_columns(C):
    eigenvalues, Q = np.linalg.eigh(C)
    return eigenvalues[::-1], Q[:, ::-1].T


@wrong("a4.pca", "lambda, Q:", "singular values of the signal")
def sigma_for_sigma_squared(C):
    eigenvalues, Q = np.linalg.eigh(C)
    return np.sqrt(np.maximum(eigenvalues[::-1], 0)), Q[:, ::-1]


@wrong("a4.pca", "Q:", "not orthonormal")
def eigenvectors_not_normalised(C):
    eigenvalues, Q = np.linalg.eigh(C)
    return eigenvalues[::-1], 2 * Q[:, ::-1]


@wrong("a4.width", "k:", "k - 1 would do")
def one_more(eigenvalues, share):
    return int(np.sum(np.cumsum(eigenvalues) <= share * np.sum(eigenvalues))) + 1


@wrong("a4.width", "k", "hold less")
def one_less(eigenvalues, share):
    return max(1, int(np.sum(np.cumsum(eigenvalues) < share * np.sum(eigenvalues))))


@wrong("a4.width", "k:", "expected an int, got float")
def a_float(eigenvalues, share):
    return float(np.sum(np.cumsum(eigenvalues) < share * np.sum(eigenvalues)) + 1)
