"""Answers to A3."""

import copy

import numpy as np
from answers import right, wrong

PRESENT = ("W_embd", "W_pos", "W_in", "b_in", "W_out", "b_out", "W_out2", "b_out2", "W_head", "b_head")


@right("a3.rotate")
def loop_over_blocks(weights, Q):
    new = copy.deepcopy(weights)
    B, D, _ = weights["W_in"].shape
    S = np.empty((B, D, D))
    new["W_embd"] = weights["W_embd"] @ Q[0]
    if weights["W_pos"] is not None:
        new["W_pos"] = weights["W_pos"] @ Q[0]
    for i in range(B):
        new["W_in"][i] = Q[i].T @ weights["W_in"][i]
        new["W_out"][i] = weights["W_out"][i] @ Q[i + 1]
        new["b_out"][i] = weights["b_out"][i] @ Q[i + 1]
        if weights["W_out2"] is not None:
            new["W_out2"][i] = weights["W_out2"][i] @ Q[i + 1]
            new["b_out2"][i] = weights["b_out2"][i] @ Q[i + 1]
        S[i] = Q[i].T @ Q[i + 1]
    new["W_head"] = Q[B].T @ weights["W_head"]
    return new, S


def assemble(read, write, adapter):
    """A right answer: read(W, Q) for W_in and head, write(W, Q) for rows of any number of axes, adapter(Q, Q_next)."""

    def rotate(weights, Q):
        def writers(name):
            some = weights[name]
            return None if some is None else np.array([write(W, Q[i + 1]) for i, W in enumerate(some)])

        new = {name: writers(name) for name in ("W_out", "b_out", "W_out2", "b_out2")}
        for name in ("W_embd", "W_pos"):
            new[name] = None if weights[name] is None else write(weights[name], Q[0])
        new["W_in"] = np.stack([read(W, Q[i]) for i, W in enumerate(weights["W_in"])])
        new["W_head"] = read(weights["W_head"], Q[-1])
        new |= {"b_in": weights["b_in"], "b_head": weights["b_head"]}
        return new, np.stack([adapter(Q[i], Q[i + 1]) for i in range(len(Q) - 1)])

    return rotate


right("a3.rotate")(assemble(lambda W, Q: Q.T @ W, lambda W, Q: W @ Q, lambda Q, N: Q.T @ N))
right("a3.rotate")(assemble(lambda W, Q: (W.T @ Q).T, lambda W, Q: (Q.T @ W.T).T, lambda Q, N: (N.T @ Q).T))
right("a3.rotate")(
    assemble(
        lambda W, Q: np.einsum("de,dh->eh", Q, W),
        lambda W, Q: np.einsum("...d,de->...e", W, Q),
        lambda Q, N: np.einsum("xd,xe->de", Q, N),
    )
)
right("a3.rotate")(assemble(lambda W, Q: np.linalg.inv(Q) @ W, np.matmul, lambda Q, N: np.linalg.inv(Q) @ N))
right("a3.rotate")(assemble(lambda W, Q: np.linalg.solve(Q, W), np.dot, np.linalg.solve))
right("a3.rotate")(
    assemble(
        lambda W, Q: np.tensordot(Q, W, axes=(0, 0)),
        lambda W, Q: np.tensordot(W, Q, axes=1),
        lambda Q, N: np.array([[Q[:, i] @ N[:, j] for j in range(len(N))] for i in range(len(Q))]),
    )
)
right("a3.rotate")(
    assemble(
        lambda W, Q: np.array([sum(Q[d, e] * W[d] for d in range(len(W))) for e in range(len(W))]),
        lambda W, Q: np.moveaxis(np.array([W @ column for column in Q.T]), 0, -1),
        lambda Q, N: np.inner(Q.T, N.T),
    )
)


@right("a3.rotate")
def batched(weights, Q):
    back = np.swapaxes(Q, 1, 2)
    new = {**weights, "W_in": back[:-1] @ weights["W_in"], "W_head": back[-1] @ weights["W_head"]}
    for name, matrices in (("W_embd", Q[0]), ("W_pos", Q[0]), ("W_out", Q[1:]), ("W_out2", Q[1:])):
        if weights[name] is not None:
            new[name] = weights[name] @ matrices
    for name in ("b_out", "b_out2"):
        if weights[name] is not None:
            new[name] = (weights[name][:, None] @ Q[1:])[:, 0]
    return new, back[:-1] @ Q[1:]


# Wrong answers


def patched(**changes):
    """A right answer, but for these entries: functions of weights and Q."""

    def rotate(weights, Q):
        new, S = batched(weights, Q)
        changed = {name: change(weights, Q) for name, change in changes.items()}
        S = changed.pop("S", S)
        return {name: changed.get(name, new[name]) if new[name] is not None else None for name in new}, S

    return rotate


@wrong("a3.rotate", "W_in[0]:", "the transpose is missing", "W_embd ok")
def q_for_q_transposed(weights, Q):
    return patched(W_in=lambda w, Q: Q[:-1] @ w["W_in"])(weights, Q)


@wrong("a3.rotate", "line", "b_in", "ValueError")
def input_bias_turned(weights, Q):
    new, S = batched(weights, Q)
    new["b_in"] = np.stack([b @ Q[i] for i, b in enumerate(weights["b_in"])])
    return new, S


@wrong("a3.rotate", "b_out[0]:", "It is as it was", "W_in ok", "W_out ok", "who writes the signal besides W_out?")
def output_bias_forgotten(weights, Q):
    return patched(b_out=lambda w, Q: w["b_out"])(weights, Q)


@wrong("a3.rotate", "S[0]:", "It is transposed")
def adapter_transposed(weights, Q):
    return patched(S=lambda w, Q: np.swapaxes(Q[1:], 1, 2) @ Q[:-1])(weights, Q)


@wrong("a3.rotate", "S[0]:", "one block early")
def adapter_off_by_one(weights, Q):
    return patched(S=lambda w, Q: np.stack([Q[i - 1].T @ Q[i] for i in range(len(Q) - 1)]))(weights, Q)


@wrong("a3.rotate", "S[0]:", "It is the identity")
def adapter_missing(weights, Q):
    return patched(S=lambda w, Q: np.stack([np.eye(len(Q[0]))] * (len(Q) - 1)))(weights, Q)


@wrong("a3.rotate", "W_head:", "before the last block")
def head_of_the_boundary_before(weights, Q):
    return patched(W_head=lambda w, Q: Q[-2].T @ w["W_head"])(weights, Q)


@wrong("a3.rotate", "W_pos:", "It is as it was")
def positions_missed(weights, Q):
    return patched(W_pos=lambda w, Q: w["W_pos"])(weights, Q)


@wrong("a3.rotate", "W_out2[0]:", "It is as it was", "W_out ok")
def parallel_output_missed(weights, Q):
    return patched(W_out2=lambda w, Q: w["W_out2"], b_out2=lambda w, Q: w["b_out2"])(weights, Q)


@wrong("a3.rotate", "W_out[0]:", "the boundary before the block")
def output_in_the_basis_of_the_input(weights, Q):
    return patched(W_out=lambda w, Q: w["W_out"] @ Q[:-1])(weights, Q)


@wrong("a3.rotate", "expected 2 values, the dictionary, S; got dict of 10")
def adapters_not_returned(weights, Q):
    return batched(weights, Q)[0]


@wrong("a3.rotate", "b_in: expected float64 [2, 7], got None", "13 of 15 points")
def unchanged_parts_left_out(weights, Q):
    new, S = batched(weights, Q)
    del new["b_in"]
    return new, S


@wrong("a3.rotate", "S:", "expected float64 [2, 3, 3], got list of 2")
def adapters_as_a_list(weights, Q):
    new, S = batched(weights, Q)
    return new, list(S)


@wrong("a3.rotate", "W_head:", "NaN at [0, 0]")
def not_a_number(weights, Q):
    return patched(W_head=lambda w, Q: np.full_like(w["W_head"], np.nan))(weights, Q)


# Right answers with other weights


@right("a3.rotate")
def one_bias_for_both_writers(weights, Q):
    new, S = batched(weights, Q)
    if new["b_out2"] is not None:
        new |= {"b_out": new["b_out"] + new["b_out2"], "b_out2": np.zeros_like(new["b_out2"])}
    return new, S


@right("a3.rotate")
def neurons_in_another_order(weights, Q):
    new, S = batched(weights, Q)
    new |= {"W_in": new["W_in"][:, :, ::-1], "b_in": new["b_in"][:, ::-1], "W_out": new["W_out"][:, ::-1]}
    return new | {"W_out2": None if new["W_out2"] is None else new["W_out2"][:, ::-1]}, S


@wrong("a3.rotate", "S: expected float64 [2, 3, 3], got float64 [3, 3]", "W_head ok", "12 of 15 points")
def one_adapter_alone(weights, Q):
    new, S = batched(weights, Q)
    return new, S[0]


@wrong("a3.rotate", "W_in[0]:", "4 of 15 points")
def embeddings_alone(weights, Q):
    new, _ = batched(weights, Q)
    return {**weights, "W_embd": new["W_embd"], "W_pos": new["W_pos"]}, np.stack([np.eye(len(q)) for q in Q[1:]])


@wrong("a3.rotate", "W_embd:", "It is as it was", "0 of 15 points")
def nothing_done(weights, Q):
    return weights, np.stack([np.eye(len(q)) for q in Q[1:]])
