"""Answers to A7."""

import numpy as np
from answers import right, wrong


def counts(shapes, k, form):
    """Numbers in embeddings, head, W_in, W_out, biases, adapters."""
    V, T, D, blocks = shapes["V"], shapes["T"], shapes["D"], shapes["blocks"]
    nexts = [k] * (len(blocks) - 1) + [D]
    rank = {"full": lambda n: n, "low-rank": lambda n: min(k, D - n), "none": lambda n: 0}[form]
    return {
        "embeddings": (V + T) * k,
        "head": D * V,
        "W_in": sum(k * H for H, _ in blocks),
        "W_out": sum(H * n for (_, H), n in zip(blocks, nexts, strict=True)),
        "biases": sum(H + n for (H, _), n in zip(blocks, nexts, strict=True)) if shapes["biases"] else 0,
        "adapters": sum(k * rank(n) for n in nexts),
    }


def products(shapes, k, form):
    """The arrays that are multiplied with, as often as they are."""
    D = shapes["D"]
    for i, (H_in, H_out) in enumerate(shapes["blocks"], 1):
        n = D if i == len(shapes["blocks"]) else k
        A = np.empty((k, min(k, D - n)))
        yield from (np.empty((k, H_in)), np.empty((H_out, n)))
        yield from {"full": [np.empty((k, n))], "low-rank": [A, A.T], "none": []}[form]
    yield np.empty((D, shapes["V"]))


def numpy_integers(shapes, k, form):
    H = np.array(shapes["blocks"])
    ends = np.append(np.full(len(H) - 1, k), shapes["D"])
    ranks = {"full": ends, "low-rank": np.minimum(k, shapes["D"] - ends), "none": 0 * ends}[form]
    total = (shapes["V"] + shapes["T"]) * k + shapes["V"] * shapes["D"] + k * H[:, 0].sum() + H[:, 1] @ ends
    return total + (H[:, 0].sum() + ends.sum()) * shapes["biases"] + k * ranks.sum()


def counted_backwards(shapes, k, form):
    D, n = shapes["D"], shapes["D"]
    total = D * shapes["V"]
    for H_in, H_out in reversed(shapes["blocks"]):
        total += H_out * n + k * H_in
        total += H_in + n if shapes["biases"] else 0
        total += k * n if form == "full" else k * min(k, D - n) if form == "low-rank" else 0
        n = k
    return total + k * (shapes["V"] + shapes["T"])


def changed(change):
    """The right counts, of which another number is made."""
    return lambda shapes, k, form: change(counts(shapes, k, form), shapes, k, form)


def operations(found, form):
    return 2 * (found["head"] + found["W_in"] + found["W_out"] + found["adapters"] * (1 + (form == "low-rank")))


def without(name):
    return changed(lambda found, *_: sum(found.values()) - found[name])


right("a7.parameters", changed(lambda found, *_: sum(found.values())), numpy_integers, counted_backwards)
wrong(
    "a7.parameters",
    {
        "last adapter k x k": (
            changed(
                lambda found, shapes, k, form: (
                    sum(found.values()) + (len(shapes["blocks"]) * k * k - found["adapters"] if form == "full" else 0)
                )
            ),
            "parameters",
            "the last one leads to a boundary of width D, it is k x D",
        ),
        "last output cut": (
            changed(lambda found, shapes, k, form: sum(found.values()) - shapes["blocks"][-1][1] * (shapes["D"] - k)),
            "parameters",
            "The last W_out is cut",
        ),
        "head not counted": (without("head"), "parameters", "The head is left out"),
        "biases dropped": (without("biases"), "parameters", "The biases are left out"),
        "adapters dropped": (without("adapters"), "parameters", "The adapters are left out"),
        "something else": (changed(lambda found, *_: sum(found.values()) + 1000), "parameters", "another value"),
    },
)

right(
    "a7.flops",
    changed(lambda found, shapes, k, form: operations(found, form)),
    lambda *arguments: sum(2 * M.size for M in products(*arguments)),
    lambda *arguments: 2 * sum(np.array([M.size for M in products(*arguments)], dtype=np.int64)),
)
wrong(
    "a7.flops",
    {
        "multiply-add as one": (
            changed(lambda found, shapes, k, form: operations(found, form) // 2),
            "flops",
            "A multiply-add is two operations",
        ),
        "low-rank as k r": (
            changed(
                lambda found, shapes, k, form: (
                    operations(found, form) - (3 * found["adapters"] if form == "low-rank" else 0)
                )
            ),
            "flops",
            "two products of two operations",
        ),
        "head not multiplied": (
            changed(lambda found, shapes, k, form: operations(found, form) - 2 * found["head"]),
            "flops",
            "The head is left out",
        ),
        "embeddings multiplied": (
            changed(lambda found, shapes, k, form: operations(found, form) + 2 * found["embeddings"]),
            "flops",
            "no product",
        ),
    },
)

right(
    "a7.gib",
    lambda parameters, bits: parameters * bits // 8 / 1024**3,
    lambda parameters, bits: np.float64(parameters) * bits / 2**33,
    lambda parameters, bits: np.array(parameters / 8 * bits / (1 << 30)),
)
wrong(
    "a7.gib",
    {
        "GB": (lambda parameters, bits: parameters * bits / 8 / 10**9, "gib", "This is GB"),
        "bits": (lambda parameters, bits: parameters * bits / 2**30, "gib", "a byte has 8 bits"),
    },
)


def bisection(n):
    low, high = 0.0, 1.0
    for _ in range(100):
        q = (low + high) / 2
        low, high = (q, high) if n * q + q * q < n else (low, q)
    return 1 - q


right("a7.break_even", bisection, lambda n: 1 + n / 2 - (n**2 / 4 + n) ** 0.5, lambda n: 1 - max(np.roots([1, n, -n])))
wrong(
    "a7.break_even",
    {
        "kept": (lambda n: (np.sqrt(n * n + 4 * n) - n) / 2, "break_even", "the share of D that is kept"),
        "adapter of full width": (lambda n: 1 / n if n > 1 else 0.5, "break_even", "not as large as before"),
    },
)
