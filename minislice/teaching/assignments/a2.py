"""A2: RMSNorm commutes with every rotation, LayerNorm does not (section 3.1)."""

import numpy as np

from . import toy
from .exercise import Case, Cases, Failure, Question
from .forms import Array
from .judging import Place, Wanted, close, compared, first_wrong, orthonormal
from .markdown import read


def _rms_cases(rng: np.random.Generator) -> Cases:
    for D in range(2, 7):
        x = rng.standard_normal((D + 2, D)) + 0.5
        x[1] *= 0.03  # so short that eps counts
        yield Case({"D": D, "N": D + 2}, {"x": x, "eps": toy.EPS})


def _rms(x: np.ndarray, eps: float) -> Wanted:
    square = np.square(x).mean(1, keepdims=True)
    spread, length = x - x.mean(1, keepdims=True), np.sqrt(x.shape[1] * square + eps)
    deviation = np.sqrt(np.square(spread).mean(1, keepdims=True) + eps)
    mistakes = {
        "It divides by the standard deviation: RMSNorm subtracts no mean anywhere.": x / deviation,
        "This is LayerNorm: RMSNorm subtracts no mean.": spread / deviation,
        "eps stands outside the root.": x / (np.sqrt(square) + eps),
        "eps is lost.": x / np.sqrt(square),
        "The mean is taken over the rows: each row is normalised by itself.": x / np.sqrt(np.square(x).mean(0) + eps),
        "It divides by the length of the row, not by its root mean square: a factor of sqrt(D) is lost.": x / length,
    }
    hint = "a norm divides each row by one positive number: by which?"
    yield Place("rms(x)", x / np.sqrt(square + eps), mistakes, hint)


def _haar_cases(rng: np.random.Generator) -> Cases:
    for D in range(2, 7):
        G = rng.standard_normal((D, D))
        if (np.linalg.det(G) > 0) == (D != 5):  # mostly G turns space inside out, and so should Q
            G[0] *= -1
        yield Case({"D": D}, {"G": G})


def _judge_haar(Q: np.ndarray, G: np.ndarray) -> Failure | None:
    """A failure unless Q turns with G.

    If Q(O G) = O Q(G) for every orthogonal O, Q is Haar, because O G is distributed as G. It is so for a Q that makes
    Q^T G triangular with a positive diagonal, or symmetric and positive, since there is only one such Q. Likewise for
    the mirror images of these: transposes, G Q^T (then Q(G O) = Q(G) O), and all signs turned.
    """
    if failure := first_wrong([orthonormal("Q", Q)]):
        return failure
    forms = [Q.T @ G, G @ Q.T, Q.T @ G.T, G.T @ Q.T]
    if any(_one_of_a_kind(sign * form) for form in forms for sign in (1, -1)):
        return None
    hint = "which Q and R are there with Q R = G, if R's diagonal may have any signs?"
    R, (lapack, its_R) = Q.T @ G, np.linalg.qr(G)
    if close(np.triu(R), R):
        signs = np.sign(R.diagonal())
        what = f"Q^T G is triangular, but its diagonal has the signs {''.join('+' if s > 0 else '-' for s in signs)}"
        mistake = "The signs are LAPACK's choice, not chance: it is not Haar." if close(lapack, Q) else ""
        if not mistake and (signs < 0).sum() == 1 and np.linalg.det(Q) > 0:
            mistake = "One column is turned round, and det Q is 1: half of the orthogonal matrices have -1."
        return Failure("Q", what, mistake=mistake, hint=hint)
    on_rows = close(np.sign(its_R.diagonal())[:, None] * lapack, Q)
    mistake = "The signs are those of the right diagonal, but they multiply Q's rows: Q R = G asks for its columns."
    what = "Q does not turn with G: for Q(O G) to be O Q(G), Q^T G should be triangular with a positive diagonal, say"
    return Failure("Q", what, mistake=mistake if on_rows else "", hint=hint)


def _one_of_a_kind(A: np.ndarray) -> bool:
    """Triangular with a positive diagonal, or symmetric and positive."""
    if close(np.triu(A), A, 1e-8) or close(np.tril(A), A, 1e-8):
        return bool((A.diagonal() > 0).all())
    return close(A.T, A, 1e-8) and bool((np.linalg.eigvalsh(A) > 0).all())


def _judge_counterexample(result: tuple[np.ndarray, np.ndarray], D: int) -> Failure | None:
    x, Q = result
    if failure := first_wrong([orthonormal("Q", Q)]):
        return failure
    if not len(x):
        return Failure("x", "it has no row")
    one = {"norm": "LayerNorm"}
    apart = np.abs(toy.normalised(one, x @ Q, 0) @ Q.T - toy.normalised(one, x, 0)).max()
    if apart > 0.1:
        return None
    what, numbers = "it differs from LayerNorm(x) by less than 0.1", f"the largest difference is {apart:.3g}"
    permutation = close(np.abs(Q).max(0), np.ones(D))
    mistake = "Q only permutes the numbers of a row, and turns signs." if permutation else ""
    hint = "what does LayerNorm make of a row whose numbers are all the same? Rotate another row there."
    return Failure("LayerNorm(x Q) Q^T", what, numbers, mistake=mistake, hint=hint)


A2, check = read(
    "a2",
    rms=compared(_rms_cases, _rms),
    haar=Question(_haar_cases, lambda G: Array("Q", G.shape), _judge_haar),
    counterexample=Question(toy.widths, lambda D: (Array("x", ("N", D)), Array("Q", (D, D))), _judge_counterexample),
)
