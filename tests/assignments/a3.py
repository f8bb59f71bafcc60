"""Answers to A3."""

import copy

import numpy as np
from answers import right, wrong


def loop_over_blocks(weights, Q):
    new = copy.deepcopy(weights)
    B, D, _ = weights["W_in"].shape
    S = np.empty((B, D, D))
    for name in ("W_embd", "W_pos"):
        new[name] = None if weights[name] is None else np.einsum("nd,de->ne", weights[name], Q[0])
    for i in range(B):
        new["W_in"][i] = np.linalg.inv(Q[i]) @ weights["W_in"][i]
        for name in ("W_out", "b_out", "W_out2", "b_out2"):
            if weights[name] is not None:
                new[name][i] = (Q[i + 1].T @ weights[name][i].T).T
        S[i] = np.linalg.solve(Q[i], Q[i + 1])
    new["W_head"] = (weights["W_head"].T @ Q[B]).T
    return [new, S]


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


def one_bias_for_both_writers(weights, Q):
    new, S = batched(weights, Q)
    if new["b_out2"] is not None:
        new |= {"b_out": new["b_out"] + new["b_out2"], "b_out2": np.zeros_like(new["b_out2"])}
    return new, S


def neurons_in_another_order(weights, Q):
    new, S = batched(weights, Q)
    new |= {"W_in": new["W_in"][:, :, ::-1], "b_in": new["b_in"][:, ::-1], "W_out": new["W_out"][:, ::-1]}
    return new | {"W_out2": None if new["W_out2"] is None else new["W_out2"][:, ::-1]}, S


right("a3.rotate", loop_over_blocks, batched, one_bias_for_both_writers, neurons_in_another_order)


def but(**changes):
    """A right answer, but for these entries: functions of weights and Q."""

    def answer(weights, Q):
        new, S = batched(weights, Q)
        changed = {name: change(weights, Q) for name, change in changes.items()}
        S = changed.pop("S", S)
        return {name: changed.get(name, new[name]) if new[name] is not None else None for name in new}, S

    return answer


def kept(*names):
    return but(**{name: lambda w, Q, name=name: w[name] for name in names})


def input_bias_turned(weights, Q):
    new, S = batched(weights, Q)
    new["b_in"] = np.stack([b @ Q[i] for i, b in enumerate(weights["b_in"])])
    return new, S


def without_b_in(weights, Q):
    new, S = batched(weights, Q)
    return {name: new[name] for name in new if name != "b_in"}, S


def eyes(weights, Q):
    return np.stack([np.eye(len(q)) for q in Q[1:]])


def embeddings_alone(weights, Q):
    return weights | {name: batched(weights, Q)[0][name] for name in ("W_embd", "W_pos")}, eyes(weights, Q)


wrong(
    "a3.rotate",
    {
        "Q for Q^T": (but(W_in=lambda w, Q: Q[:-1] @ w["W_in"]), "W_in[0]:", "the transpose is missing", "W_embd ok"),
        "input bias turned": (input_bias_turned, "line", "b_in", "ValueError"),
        "output bias forgotten": (
            kept("b_out"),
            "b_out[0]:",
            "It is as it was",
            "W_in ok, b_in ok, W_out ok, S ok",
            "Hint: who writes the signal besides W_out?",
        ),
        "adapter transposed": (but(S=lambda w, Q: np.swapaxes(Q[1:], 1, 2) @ Q[:-1]), "S[0]:", "It is transposed"),
        "adapter off by one": (
            but(S=lambda w, Q: np.stack([Q[i - 1].T @ Q[i] for i in range(len(Q) - 1)])),
            "S[0]:",
            "one block early",
        ),
        "adapter missing": (but(S=eyes), "S[0]:", "It is the identity"),
        "head of the boundary before": (
            but(W_head=lambda w, Q: Q[-2].T @ w["W_head"]),
            "W_head:",
            "before the last block",
        ),
        "positions missed": (kept("W_pos"), "W_pos:", "It is as it was"),
        "parallel output missed": (kept("W_out2", "b_out2"), "W_out2[0]:", "It is as it was", "W_out ok"),
        "output in the basis of the input": (
            but(W_out=lambda w, Q: w["W_out"] @ Q[:-1]),
            "W_out[0]:",
            "the boundary before the block",
        ),
        "adapters not returned": (
            lambda w, Q: batched(w, Q)[0],
            "expected 2 values, the dictionary, S; got dict of 10",
        ),
        "b_in left out": (without_b_in, "b_in: expected float64 [2, 7], got None", "13 of 15 points"),
        "adapters as a list": (
            lambda w, Q: (batched(w, Q)[0], list(batched(w, Q)[1])),
            "S: expected float64 [2, 3, 3], got list of 2",
            "W_head ok",
            "12 of 15 points",
        ),
        "not a number": (but(W_head=lambda w, Q: np.full_like(w["W_head"], np.nan)), "W_head:", "NaN at [0, 0]"),
        "embeddings alone": (embeddings_alone, "W_in[0]:", "4 of 15 points"),
        "nothing done": (lambda w, Q: (w, eyes(w, Q)), "W_embd:", "It is as it was", "0 of 15 points"),
    },
)
