"""A7: what slicing costs and saves, counted (section 4, and notebook 06)."""

from collections.abc import Callable

import numpy as np

from .exercise import Case, Cases, Failure, Question
from .forms import Array
from .judging import Place, Wanted, close, compared
from .markdown import read

FORMS = ("full", "low-rank", "none")
HINT = "write down the shape of every array of the network; its adapters are "


def _cost_cases(rng: np.random.Generator) -> Cases:
    """Networks of one to four blocks, with and without positions and biases, sliced to more and to less than D / 2.

    No width is 1: a count without this factor would be the same.
    """
    for D, B in ((6, 1), (8, 2), (10, 4), (12, 3)):
        blocks = [[int(rng.integers(D, 4 * D)), int(rng.integers(D, 4 * D))] for _ in range(B)]
        shapes = {"V": int(rng.integers(50, 99)), "T": B % 2 * int(rng.integers(9, 30)), "D": D, "blocks": blocks}
        shapes["biases"] = B in (2, 3)
        for form in FORMS:
            k = int(rng.integers(2, D // 2)) if B % 2 else int(rng.integers(D // 2 + 1, D))
            yield Case({"D": D, "k": k, "B": B}, {"shapes": shapes, "k": k, "form": form})


def _sizes(shapes: dict, k: int, form: str, last: int | None = None) -> dict[str, int]:
    """The sizes of a sliced network's arrays, counted on real arrays. The last boundary has D columns, or `last`."""
    V, T, D, blocks = (shapes[name] for name in ("V", "T", "D", "blocks"))
    bases = [np.eye(D)[:, :k]] * len(blocks) + [np.eye(D)[:, : last or D]]
    tables = {"embeddings": V, "positions": T}
    sizes = {name: (np.zeros((rows, D)) @ bases[0]).size for name, rows in tables.items()} | {"head": V * D}
    sizes |= dict.fromkeys(("W_in", "W_out", "biases", "adapters"), 0)
    for (H_in, H_out), P, P_next in zip(blocks, bases[:-1], bases[1:], strict=True):
        sizes["W_in"] += (P.T @ np.zeros((D, H_in))).size
        sizes["W_out"] += (np.zeros((H_out, D)) @ P_next).size
        sizes["biases"] += shapes["biases"] * (H_in + (np.zeros(D) @ P_next).size)
        low_rank = np.zeros((k, min(k, D - P_next.shape[1])))
        sizes["adapters"] += {"full": P.T @ P_next, "low-rank": low_rank, "none": np.zeros(0)}[form].size
    return sizes


def _parameters(shapes: dict, k: int, form: str) -> Wanted:
    sizes = _sizes(shapes, k, form)
    total, mistakes = sum(sizes.values()), _left_out(_sizes, shapes, k, form)
    mistakes["The biases are left out."] = total - sizes["biases"]
    mistakes["The positions are left out: they are a table beside the embeddings."] = total - sizes["positions"]
    yield Place("parameters", total, mistakes, HINT + form)


def _multiplied(shapes: dict, k: int, form: str, last: int | None = None) -> dict[str, int]:
    """Half of the operations: each number of a matrix is multiplied and added once, those of a low-rank A twice."""
    sizes = _sizes(shapes, k, form, last)
    sizes["adapters"] *= 2 if form == "low-rank" else 1
    return {name: size for name, size in sizes.items() if name not in ("embeddings", "positions", "biases")}


def _flops(shapes: dict, k: int, form: str) -> Wanted:
    sizes = _sizes(shapes, k, form)
    total = 2 * sum(_multiplied(shapes, k, form).values())
    mistakes = {name: 2 * value for name, value in _left_out(_multiplied, shapes, k, form).items()}
    mistakes["A multiply-add is two operations."] = total // 2
    if form == "low-rank":
        A = sizes["adapters"]
        mistakes["A low-rank adapter is two products: x A, then that times A^T."] = total - 2 * A
        mistakes["A low-rank adapter is two products of two operations for each number of A."] = total - 3 * A
    mistakes["Looking up an embedding is no product."] = total + 2 * (sizes["embeddings"] + sizes["positions"])
    mistakes["A bias is added, it is no product."] = total + sizes["biases"]
    yield Place("flops", total, mistakes, HINT + form)


def _left_out(count: Callable[..., dict[str, int]], shapes: dict, k: int, form: str) -> dict[str, int]:
    """Totals after mistakes that the counts of parameters and of operations share."""
    sizes, D, B = count(shapes, k, form), shapes["D"], len(shapes["blocks"])
    total, cut = sum(sizes.values()), count(shapes, k, form, k)
    mistakes = {
        "The head is left out: fusion gives it a matrix of its own.": total - sizes["head"],
        "The head is cut: it reads the last boundary, which keeps D.": total - shapes["V"] * (D - k),
        "The last boundary keeps D: the last block's W_out, bias and adapter lead to it.": sum(cut.values()),
        "The adapters are left out.": total - sizes["adapters"],
    }
    if (W_out_cut := total - sizes["W_out"] + cut["W_out"]) != sum(cut.values()):
        mistakes["The last W_out is cut: the last boundary keeps D."] = W_out_cut
    if form == "full":
        square = "All adapters are k x k: the last one leads to a boundary of width D, it is k x D."
        mistakes[square] = total - sizes["adapters"] + B * k * k
    return mistakes


def _gib_cases(rng: np.random.Generator) -> Cases:
    for count, bits in ((2**30, 8), (3 * 2**20, 16), (int(rng.integers(10**8, 10**9)), 32), (6_738_415_616, 4)):
        yield Case({"parameters": count, "bits": bits}, {"parameters": count, "bits": bits})


def _gib(parameters: int, bits: int) -> Wanted:
    mistakes = {
        "This is GB, 10^9 bytes: a GiB is 2^30.": parameters * bits / 8e9,
        "These are Gibit: a byte has 8 bits.": parameters * bits / 2**30,
        "This is MiB.": parameters * bits / 2**23,
    }
    yield Place("gib", parameters * bits / 2**33, mistakes, "how many bytes are a GiB?")


def _even_cases(rng: np.random.Generator) -> Cases:
    for n in sorted(int(n) for n in 1 + rng.choice(40, 5, replace=False)):
        yield Case({"n": n}, {"n": n})


def _judge_even(deleted: float, n: int) -> Failure | None:
    """A share, 1 - q, with n q + q^2 = n."""
    q = 1 - deleted
    if not 0 < deleted < 1:
        return Failure("break_even", "it is not a share between 0 and 1", f"got {deleted:.4g}")
    if close(n, n * q + q * q):
        return None
    kept = close(n, n * deleted + deleted * deleted)
    mistake = "This is the share of D that is kept." if kept else ""
    values = f"with {deleted:.4g} of D deleted, the block has {n * q + q * q:.4g} D^2 parameters, {n} D^2 before"
    hint = "with k = q D, how many parameters have W_in and W_out together, and the adapter?"
    return Failure("break_even", "the block is not as large as before", values, mistake=mistake, hint=hint)


A7, check = read(
    "a7",
    parameters=compared(_cost_cases, _parameters),
    flops=compared(_cost_cases, _flops),
    gib=compared(_gib_cases, _gib),
    break_even=Question(_even_cases, lambda n: Array("break_even"), _judge_even),
)
