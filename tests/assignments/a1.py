"""Answers to A1."""

import copy

import numpy as np
from answers import right, wrong


def centred(x):
    return None if x is None else x - x.mean(-1, keepdims=True)


def centre(D):
    return np.eye(D) - 1 / D


right("a1.center", centre, lambda D: D * np.cov(np.eye(D), bias=True), lambda D: centred(np.identity(D)))
wrong(
    "a1.center",
    {
        "the mean itself": (lambda D: np.ones((D, D)) / D, "M", "the mean in place of every number"),
        "divided by D - 1": (lambda D: np.eye(D) - np.ones((D, D)) / max(1, D - 1), "M:", "first difference"),
    },
)


def reader(W, b, alpha, beta):
    if beta is not None:
        b = beta @ W + (0 if b is None else b)
    return alpha[:, None] * W, b


def by_probing(W, b, alpha, beta):
    def layer(x):
        y = (x * alpha + (0 if beta is None else beta)) @ W
        return y if b is None else y + b

    bias = layer(np.zeros((1, len(W))))
    return [layer(np.eye(len(W))) - bias, None if b is None and beta is None else bias[0]]


def with_zeros(W, b, alpha, beta):
    return np.diag(alpha) @ W, (0 if beta is None else beta @ W) + (np.zeros(W.shape[1]) if b is None else b)


def reader_changes_its_argument(W, b, alpha, beta):
    fused = reader(W, b, alpha, beta)
    W *= alpha[:, None]
    return fused


right("a1.fuse_reader", reader, by_probing, with_zeros)
wrong(
    "a1.fuse_reader",
    {
        "alpha on outputs": (lambda W, b, alpha, beta: (W * alpha, b), "line", "W * alpha", "ValueError"),
        "alpha forgotten": (lambda W, b, *norm: (W, reader(W, b, *norm)[1]), "W:", "alpha is not in it"),
        "beta through scaled W": (
            lambda W, b, alpha, beta: reader(alpha[:, None] * W, b, np.ones_like(alpha), beta),
            "b:",
            "beta went through the scaled W",
        ),
        "beta lost where there is no bias": (
            lambda W, b, *norm: (reader(W, b, *norm)[0], None if b is None else reader(W, b, *norm)[1]),
            "b:",
            "got None",
        ),
        "beta lost": (
            lambda W, b, alpha, beta: (alpha[:, None] * W, np.zeros(W.shape[1]) if b is None else b),
            "b:",
            "beta is lost",
        ),
        "argument changed": (reader_changes_its_argument, "W: the function changes its argument"),
    },
)

right(
    "a1.fuse_writer",
    lambda W, b: (centred(W), centred(b)),
    lambda W, b: [W @ centre(len(b)), b @ centre(len(b))],
    lambda W, b: ((W.T - W.mean(axis=1)).T, b - b.sum() / b.size),
)
wrong(
    "a1.fuse_writer",
    {
        "the wrong axis": (lambda W, b: (W - W.mean(axis=0), centred(b)), "W:", "the wrong axis", "b ok"),
        "bias not centred": (lambda W, b: (centred(W), b), "b:", "written to the signal too", "W ok"),
    },
)


def fused(net):
    """In place, on a deep copy."""
    new = copy.deepcopy({name: net[name] for name in net if name not in ("norm", "alpha", "beta")})
    head = new["W_embd"].T.copy() if new["W_head"] is None else new["W_head"]
    if net["beta"] is not None:
        new["b_head"] = net["beta"][-1] @ head
        new["b_in"] += np.einsum("bd,bdh->bh", net["beta"][:-1], net["W_in"])
    new["W_head"] = head * net["alpha"][-1][:, None]
    new["W_in"] *= net["alpha"][:-1][:, :, None]
    if net["norm"] == "LayerNorm":
        for name in ("W_embd", "W_pos", "W_out", "b_out"):
            new[name] -= new[name].mean(-1, keepdims=True)
    return new


def from_pieces(net):
    """Block by block; what isn't there is left out."""
    write = centred if net["norm"] == "LayerNorm" else lambda x: x
    betas = [None] * len(net["alpha"]) if net["beta"] is None else net["beta"]
    biases = [None] * len(net["W_in"]) if net["b_in"] is None else net["b_in"]
    pairs = [by_probing(*layer) for layer in zip(net["W_in"], biases, net["alpha"], betas, strict=False)]
    head = net["W_embd"].T if net["W_head"] is None else net["W_head"]
    W_head, b_head = by_probing(head, net["b_head"], net["alpha"][-1], betas[-1])
    new = {name: write(net[name]) for name in ("W_embd", "W_pos", "W_out", "b_out")}
    new |= {"W_in": np.array([W for W, _ in pairs]), "W_head": W_head, "b_head": b_head}
    new["b_in"] = None if pairs[0][1] is None else np.array([b for _, b in pairs])
    return {name: value for name, value in new.items() if value is not None}


def readers_centred_too(net):
    new = fused(net)
    if net["norm"] == "LayerNorm":
        for name in ("W_in", "W_head"):
            new[name] -= new[name].mean(-2, keepdims=True)
    return new


def rotated_with_zeros_for_no_biases(net):
    B, D, H = net["W_in"].shape
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    new = fused(net)
    zeros = {"b_in": np.zeros((B, H)), "b_out": np.zeros((B, D)), "b_head": np.zeros(len(net["W_embd"]))}
    new |= {name: zero for name, zero in zeros.items() if new[name] is None} | {"alpha": None, "norm": "RMSNorm"}
    turned = {name: new[name] @ Q for name in ("W_embd", "W_pos", "W_out", "b_out") if new[name] is not None}
    return new | turned | {"W_in": Q.T @ new["W_in"], "W_head": Q.T @ new["W_head"]}


def tied_embedding_scaled(net):
    return fused(net) | ({"W_embd": fused(net)["W_head"].T.copy()} if net["W_head"] is None else {})


def tied_head_centred_before_alpha(net):
    if net["W_head"] is not None or net["norm"] == "RMSNorm":
        return fused(net)
    return fused({**net, "W_head": centred(net["W_embd"]).T})


def network_changed(net):
    new = fused(net)
    net["W_out"] -= net["W_out"].mean(-1, keepdims=True)
    return new


def beta_through(change):
    """A network whose beta went through changed W_in."""

    def answer(net):
        if net["beta"] is None:
            return fused(net)
        W_in = change(net)
        return fused(net) | {"b_in": net["b_in"] + np.einsum("bd,bdh->bh", net["beta"][:-1], W_in)}

    return answer


def output_bias_that_is_not_there(net):
    b_out = np.ones((len(net["W_out"]), net["W_embd"].shape[1])) if net["b_out"] is None else 0 * net["b_out"]
    return fused(net) | {"b_out": b_out}


right("a1.fuse", fused, from_pieces, readers_centred_too, rotated_with_zeros_for_no_biases)
wrong(
    "a1.fuse",
    {
        "positions not centred": (
            lambda net: fused(net) | {"W_pos": net["W_pos"]},
            "W_pos:",
            "LayerNorms would subtract its mean",
            "W_embd ok",
        ),
        "tied embedding scaled": (tied_embedding_scaled, "W_embd:", "scaled with the tied head"),
        "tied head centred before alpha": (
            tied_head_centred_before_alpha,
            "W_head:",
            "The embedding was centred first: the tied head is the embedding as it was.",
        ),
        "LLaMA centred": (
            lambda net: fused(net) | {name: centred(net[name]) for name in ("W_embd", "W_out")},
            "W_embd:",
            "an RMSNorm subtracts no mean",
        ),
        "head forgotten": (
            lambda net: fused(net) | {"W_head": net["W_embd"].T if net["W_head"] is None else net["W_head"]},
            "W_head:",
            "alpha is not in it",
        ),
        "output biases not centred": (
            lambda net: fused(net) | {"b_out": net["b_out"]},
            "b_out[0]:",
            "written to the signal too",
            "W_out ok",
        ),
        "readers centred in place of the output biases": (
            lambda net: readers_centred_too(net) | {"b_out": net["b_out"]},
            "b_out[0]:",
            "It is as it was",
            "W_in ok",
        ),
        "output bias that is not there": (output_bias_that_is_not_there, "b_out[0]:", "first difference"),
        "network changed": (network_changed, "net: the function changes its argument"),
        "norms keep their weights": (lambda net: net | fused(net), "alpha: the fused network still has it"),
        "beta through scaled W": (
            beta_through(lambda net: fused(net)["W_in"]),
            "b_in[0]:",
            "beta went through the scaled W",
        ),
        "beta through centred W": (
            beta_through(lambda net: net["W_in"] - net["W_in"].mean(1, keepdims=True)),
            "b_in[0]:",
            "beta went through the centred W",
        ),
    },
)
