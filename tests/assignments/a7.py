"""Answers to A7."""

import numpy as np
from answers import right, wrong


def counts(shapes, k, form):
    """Numbers in embeddings, head, W_in, W_out, biases, adapters, and how often a token uses an adapter's."""
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


# parameters


@right("a7.parameters")
def sum_of_counts(shapes, k, form):
    return sum(counts(shapes, k, form).values())


@right("a7.parameters")
def real_arrays(shapes, k, form):
    D, B = shapes["D"], len(shapes["blocks"])
    arrays = [np.empty((shapes["V"], k)), np.empty((shapes["T"], k)), np.empty((D, shapes["V"]))]
    for i, (H_in, H_out) in enumerate(shapes["blocks"]):
        n = D if i + 1 == B else k
        arrays += [np.empty((k, H_in)), np.empty((H_out, n))]
        arrays += [np.empty(H_in), np.empty(n)] if shapes["biases"] else []
        if form != "none":
            arrays.append(np.empty((k, n if form == "full" else min(k, D - n))))
    return sum(a.size for a in arrays)


@right("a7.parameters")
def shapes_and_prod(shapes, k, form):
    D = shapes["D"]
    sizes = [(shapes["V"], k), (shapes["T"], k), (D, shapes["V"])]
    ends = [*[k] * (len(shapes["blocks"]) - 1), D]
    for (reads, writes), end in zip(shapes["blocks"], ends, strict=True):
        sizes += [(k, reads), (writes, end)]
        if shapes["biases"]:
            sizes += [(reads,), (end,)]
        sizes += {"full": [(k, end)], "low-rank": [(k, min(k, D - end))], "none": []}[form]
    return sum(int(np.prod(size)) for size in sizes)


@right("a7.parameters")
def numpy_integers(shapes, k, form):
    H = np.array(shapes["blocks"])
    ends = np.full(len(H), k)
    ends[-1] = shapes["D"]
    total = (shapes["V"] + shapes["T"]) * k + shapes["V"] * shapes["D"] + k * H[:, 0].sum() + H[:, 1] @ ends
    total += (H[:, 0].sum() + ends.sum()) * shapes["biases"]
    ranks = {"full": ends, "low-rank": np.minimum(k, shapes["D"] - ends), "none": 0 * ends}[form]
    return total + k * ranks.sum()


@right("a7.parameters")
def last_block_apart(shapes, k, form):
    D, (*inner, last) = shapes["D"], shapes["blocks"]
    total = shapes["V"] * (k + D) + shapes["T"] * k
    for H_in, H_out in inner:
        total += k * (H_in + H_out) + (H_in + k if shapes["biases"] else 0)
        total += {"full": k * k, "low-rank": k * min(k, D - k), "none": 0}[form]
    total += k * last[0] + D * last[1] + (last[0] + D if shapes["biases"] else 0)
    return total + (k * D if form == "full" else 0)


@right("a7.parameters")
def counted_backwards(shapes, k, form):
    D, n = shapes["D"], shapes["D"]
    total = D * shapes["V"]
    for H_in, H_out in reversed(shapes["blocks"]):
        total += H_out * n + k * H_in
        if shapes["biases"]:
            total += H_in + n
        if form == "full":
            total += k * n
        elif form == "low-rank" and n != D:
            total += k * min(k, D - k)
        n = k
    return total + k * (shapes["V"] + shapes["T"])


@right("a7.parameters")
def recursive(shapes, k, form, first=True):
    D, blocks = shapes["D"], shapes["blocks"]
    start = (shapes["V"] + shapes["T"]) * k if first else 0
    if not blocks:
        return start + D * shapes["V"]
    n = k if len(blocks) > 1 else D
    here = k * blocks[0][0] + blocks[0][1] * n + (blocks[0][0] + n) * int(shapes["biases"])
    here += k * n if form == "full" else k * min(k, D - n) if form == "low-rank" else 0
    return start + here + recursive({**shapes, "blocks": blocks[1:]}, k, form, False)


@right("a7.parameters")
def with_a_dictionary(shapes, k, form):
    found = counts(shapes, k, form)
    return int(np.sum(list(found.values())))


# flops


@right("a7.flops")
def products_of_counts(shapes, k, form):
    found = counts(shapes, k, form)
    return 2 * (found["head"] + found["W_in"] + found["W_out"] + found["adapters"] * (1 + (form == "low-rank")))


def by_products(list_of_products):
    """A right answer from a function that lists the (rows, columns) of all products."""
    return lambda shapes, k, form: sum(2 * m * n for m, n in list_of_products(shapes, k, form))


@right("a7.flops")
@by_products
def every_product(shapes, k, form):
    D = shapes["D"]
    for i, (H_in, H_out) in enumerate(shapes["blocks"], 1):
        n = D if i == len(shapes["blocks"]) else k
        yield k, H_in
        yield H_out, n
        if form == "full":
            yield k, n
        if form == "low-rank":
            yield k, min(k, D - n)
            yield min(k, D - n), k
    yield D, shapes["V"]


@right("a7.flops")
def from_parameters(shapes, k, form):
    found = counts(shapes, k, form)
    total = sum(found.values()) - found["embeddings"] - found["biases"]
    return 2 * total + (2 * found["adapters"] if form == "low-rank" else 0)


@right("a7.flops")
def real_products(shapes, k, form):
    D = shapes["D"]
    matrices = [np.empty((D, shapes["V"]))]
    for i, (H_in, H_out) in enumerate(shapes["blocks"]):
        n = k if i < len(shapes["blocks"]) - 1 else D
        A = np.empty((k, min(k, D - n)))
        matrices += [np.empty((k, H_in)), np.empty((H_out, n))]
        matrices += {"full": [np.empty((k, n))], "low-rank": [A, A.T], "none": []}[form]
    return sum(2 * M.size for M in matrices)


@right("a7.flops")
def numpy_sums(shapes, k, form):
    H = np.array(shapes["blocks"])
    ends = np.append(np.full(len(H) - 1, k), shapes["D"])
    per_adapter = {"full": 2 * k * ends, "low-rank": 4 * k * np.minimum(k, shapes["D"] - ends), "none": 0 * ends}[form]
    return 2 * shapes["D"] * shapes["V"] + 2 * k * H[:, 0].sum() + 2 * (H[:, 1] * ends).sum() + per_adapter.sum()


@right("a7.flops")
def multiplications_and_additions(shapes, k, form):
    D, multiplications, additions = shapes["D"], 0, 0
    for i, (H_in, H_out) in enumerate(shapes["blocks"]):
        end = k if i < len(shapes["blocks"]) - 1 else D
        adapter = {"full": k * end, "low-rank": 2 * k * min(k, D - end), "none": 0}[form]
        multiplications += k * H_in + H_out * end + adapter
        additions += k * H_in + H_out * end + adapter
    return multiplications + additions + D * shapes["V"] * 2


@right("a7.flops")
def last_block_apart_(shapes, k, form):
    D, (*inner, last) = shapes["D"], shapes["blocks"]
    total = sum(2 * k * (H_in + H_out) for H_in, H_out in inner) + 2 * k * last[0] + 2 * D * last[1]
    total += len(inner) * {"full": 2 * k * k, "low-rank": 4 * k * min(k, D - k), "none": 0}[form]
    return total + 2 * D * shapes["V"] + (2 * k * D if form == "full" else 0)


@right("a7.flops")
def counted_backwards_(shapes, k, form):
    n = shapes["D"]
    total = 2 * n * shapes["V"]
    for H_in, H_out in shapes["blocks"][::-1]:
        total += 2 * (H_out * n + k * H_in)
        if form == "full":
            total += 2 * k * n
        elif form == "low-rank":
            total += 4 * k * min(k, shapes["D"] - n)
        n = k
    return total


# gib

right("a7.gib")(lambda parameters, bits: parameters * bits / 8 / 1024**3)
right("a7.gib")(lambda parameters, bits: parameters * (bits / 8) / 1073741824)
right("a7.gib")(lambda parameters, bits: parameters / 8 * bits / (1 << 30))
right("a7.gib")(lambda parameters, bits: (parameters * bits) * 2.0**-33)
right("a7.gib")(lambda parameters, bits: np.float64(parameters) * bits / 2**33)
right("a7.gib")(lambda parameters, bits: parameters * bits // 8 / 2**30)
right("a7.gib")(lambda parameters, bits: np.prod([parameters / 1024, bits / 1024, 1 / 1024]) / 8)
right("a7.gib")(lambda parameters, bits: np.array(parameters * bits / 2**33))

# break_even

right("a7.break_even")(lambda n: 1 - (-n + (n * n + 4 * n) ** 0.5) / 2)
right("a7.break_even")(lambda n: 1 + n / 2 - np.sqrt(n**2 / 4 + n))
right("a7.break_even")(lambda n: 1 - max(np.roots([1, n, -n])))
right("a7.break_even")(lambda n: 1 - np.max(np.roots([1, n, -n]).real))
right("a7.break_even")(lambda n: float(1 - 2 * n / (n + np.sqrt(n * n + 4 * n))))
right("a7.break_even")(lambda n: 1 - ((n + 2) ** 2 - 4) ** 0.5 / 2 + n / 2)


@right("a7.break_even")
def bisection(n):
    low, high = 0.0, 1.0
    for _ in range(100):
        q = (low + high) / 2
        low, high = (q, high) if n * q + q * q < n else (low, q)
    return 1 - q


@right("a7.break_even")
def newton(n):
    q = 1.0
    for _ in range(60):
        q -= (n * q + q * q - n) / (n + 2 * q)
    return 1 - q


# Wrong answers


def wrong_count(question, *says):
    """A wrong answer that gets the right counts and returns another number."""

    def collect(change):
        def answer(shapes, k, form):
            found = counts(shapes, k, form)
            return change(found, shapes, k, form)

        answer.__name__ = change.__name__
        return wrong(question, *says)(answer)

    return collect


@wrong_count("a7.parameters", "parameters", "the last one leads to a boundary of width D, it is k x D")
def last_adapter_k_by_k(found, shapes, k, form):
    adapters = len(shapes["blocks"]) * k * k if form == "full" else found["adapters"]
    return sum(found.values()) - found["adapters"] + adapters


@wrong_count("a7.parameters", "parameters", "The last W_out is cut")
def last_output_cut(found, shapes, k, form):
    return sum(found.values()) - shapes["blocks"][-1][1] * (shapes["D"] - k)


@wrong_count("a7.parameters", "parameters", "The head is left out")
def head_not_counted(found, shapes, k, form):
    return sum(found.values()) - found["head"]


@wrong_count("a7.parameters", "parameters", "The biases are left out")
def biases_dropped(found, shapes, k, form):
    return sum(found.values()) - found["biases"]


@wrong_count("a7.parameters", "parameters", "The adapters are left out")
def adapters_dropped(found, shapes, k, form):
    return sum(found.values()) - found["adapters"]


@wrong_count("a7.parameters", "parameters", "another value")
def something_else(found, shapes, k, form):
    return sum(found.values()) + 1000


@wrong_count("a7.flops", "flops", "A multiply-add is two operations")
def multiply_add_as_one(found, shapes, k, form):
    return found["head"] + found["W_in"] + found["W_out"] + found["adapters"] * (1 + (form == "low-rank"))


@wrong_count("a7.flops", "flops", "two products of two operations")
def low_rank_as_k_r(found, shapes, k, form):
    adapters = found["adapters"] if form == "low-rank" else 2 * found["adapters"]
    return 2 * (found["head"] + found["W_in"] + found["W_out"]) + adapters


@wrong_count("a7.flops", "flops", "The head is left out")
def head_not_multiplied(found, shapes, k, form):
    return products_of_counts(shapes, k, form) - 2 * found["head"]


@wrong_count("a7.flops", "flops", "no product")
def embeddings_multiplied(found, shapes, k, form):
    return products_of_counts(shapes, k, form) + 2 * found["embeddings"]


@wrong("a7.gib", "gib", "This is GB")
def gb_for_gib(parameters, bits):
    return parameters * bits / 8 / 10**9


@wrong("a7.gib", "gib", "a byte has 8 bits")
def bits_for_bytes(parameters, bits):
    return parameters * bits / 2**30


@wrong("a7.break_even", "break_even", "the share of D that is kept")
def kept_for_deleted(n):
    return (np.sqrt(n * n + 4 * n) - n) / 2


@wrong("a7.break_even", "break_even", "not as large as before")
def adapter_of_full_width(n):
    return 1 / n if n > 1 else 0.5
