"""Answers to A1."""

import copy

import numpy as np
from answers import right, wrong

# center

right("a1.center")(lambda D: np.eye(D) - 1 / D)
right("a1.center")(lambda D: np.identity(D) - np.full((D, D), 1 / D))
right("a1.center")(lambda D: np.eye(D) - np.outer(np.ones(D), np.ones(D)) / D)
right("a1.center")(lambda D: np.eye(D) - np.eye(D).mean(axis=0))
right("a1.center")(lambda D: D * np.cov(np.eye(D), bias=True))
right("a1.center")(lambda D: np.eye(D) - np.ones((D, 1)) @ np.linalg.pinv(np.ones((D, 1))))
right("a1.center")(lambda D: np.where(np.eye(D) == 1, 1 - 1 / D, -1 / D))


@right("a1.center")
def loops(D):
    M = np.zeros((D, D))
    for i in range(D):
        for j in range(D):
            M[i, j] = (1 if i == j else 0) - 1 / D
    return M


@right("a1.center")
def projection_onto_a_complement(D):
    Q, _ = np.linalg.qr(np.column_stack([np.ones(D), np.eye(D)[:, 1:]]))
    return Q[:, 1:] @ Q[:, 1:].T


# fuse_reader


@right("a1.fuse_reader")
def diagonal_matrix(W, b, alpha, beta):
    bias = None
    if b is not None or beta is not None:
        bias = np.zeros(W.shape[1])
        bias = bias if b is None else bias + b
        bias = bias if beta is None else bias + beta @ W
    return np.diag(alpha) @ W, bias


@right("a1.fuse_reader")
def einsum(W, b, alpha, beta):
    if beta is not None:
        b = np.einsum("d,dh->h", beta, W) + (0 if b is None else b)
    return np.einsum("d,dh->dh", alpha, W), b


@right("a1.fuse_reader")
def row_by_row(W, b, alpha, beta):
    new, bias = np.empty_like(W), None if b is None else b.copy()
    for i in range(len(W)):
        new[i] = alpha[i] * W[i]
        if beta is not None:
            bias = (0 if bias is None else bias) + beta[i] * W[i]
    return new, bias


@right("a1.fuse_reader")
def by_transposes(W, b, alpha, beta):
    shift = None if beta is None else (W.T * beta).T.sum(axis=0)
    parts = [part for part in (b, shift) if part is not None]
    return (W.T * alpha).T, sum(parts) if parts else None


@right("a1.fuse_reader")
def as_a_list(W, b, alpha, beta):
    if beta is None:
        return [W * alpha.reshape(-1, 1), b]
    return [W * alpha.reshape(-1, 1), np.dot(beta, W) if b is None else np.dot(beta, W) + b]


@right("a1.fuse_reader")
def numbers_one_by_one(W, b, alpha, beta):
    D, H = W.shape
    new = np.array([[alpha[i] * W[i, j] for j in range(H)] for i in range(D)])
    if b is None and beta is None:
        return new, None
    bias = np.array(
        [
            (0.0 if b is None else b[j]) + (0.0 if beta is None else sum(beta[i] * W[i, j] for i in range(D)))
            for j in range(H)
        ]
    )
    return new, bias


@right("a1.fuse_reader")
def in_place_on_a_copy(W, b, alpha, beta):
    new = W.copy()
    new *= np.expand_dims(alpha, 1)
    if beta is None:
        return new, b
    bias = np.matmul(beta[None], W)[0]
    if b is not None:
        bias += b
    return new, bias


@right("a1.fuse_reader")
def by_probing(W, b, alpha, beta):
    def layer(x):
        y = (x * alpha + (0 if beta is None else beta)) @ W
        return y if b is None else y + b

    bias = layer(np.zeros((1, len(W))))
    return layer(np.eye(len(W))) - bias, None if b is None and beta is None else bias[0]


# fuse_writer

right("a1.fuse_writer")(lambda W, b: (W - W.mean(-1)[:, None], b - np.mean(b)))
right("a1.fuse_writer")(lambda W, b: (W @ (np.eye(len(b)) - 1 / len(b)), b @ (np.eye(len(b)) - 1 / len(b))))
right("a1.fuse_writer")(lambda W, b: [W - np.average(W, axis=1, keepdims=True), b - np.average(b)])
right("a1.fuse_writer")(lambda W, b: (W - W.sum(1, keepdims=True) / W.shape[1], b - b.sum() / b.size))
right("a1.fuse_writer")(lambda W, b: ((W.T - W.mean(axis=1)).T, b - b.mean()))
right("a1.fuse_writer")(lambda W, b: (np.apply_along_axis(lambda r: r - r.mean(), 1, W), b - b.mean()))


@right("a1.fuse_writer")
def bias_as_a_row(W, b):
    rows = np.vstack([W, b])
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows[:-1], rows[-1]


@right("a1.fuse_writer")
def loops_(W, b):
    H, D = W.shape
    new, bias = np.zeros((H, D)), np.zeros(D)
    for j in range(D):
        for i in range(H):
            new[i, j] = W[i, j] - sum(W[i]) / D
        bias[j] = b[j] - sum(b) / D
    return new, bias


@right("a1.fuse_writer")
def einsum_(W, b):
    D = len(b)
    return W - np.einsum("hd,e->he", W, np.ones(D) / D), b - np.einsum("d,e->e", b, np.ones(D) / D)


# fuse


def reader(W, b, alpha, beta):
    if beta is not None:
        b = beta @ W + (0 if b is None else b)
    return alpha[:, None] * W, b


@right("a1.fuse")
def deepcopy_and_change(net):
    new = copy.deepcopy({name: net[name] for name in net if name not in ("norm", "alpha", "beta")})
    if new["W_head"] is None:
        new["W_head"] = new["W_embd"].T.copy()
    if net["beta"] is not None:
        shift = net["beta"][-1] @ new["W_head"]
        new["b_head"] = shift if new["b_head"] is None else new["b_head"] + shift
        for block, W in enumerate(net["W_in"]):
            new["b_in"][block] += net["beta"][block] @ W
    new["W_head"] *= net["alpha"][-1][:, None]
    new["W_in"] *= net["alpha"][:-1][:, :, None]
    if net["norm"] == "LayerNorm":
        for name in ("W_embd", "W_pos", "W_out", "b_out"):
            new[name] -= new[name].mean(-1, keepdims=True)
    return new


@right("a1.fuse")
def all_blocks_at_once(net):
    centre = (lambda x: x - x.mean(-1, keepdims=True)) if net["norm"] == "LayerNorm" else (lambda x: x)
    new = {name: None if net[name] is None else centre(net[name]) for name in ("W_embd", "W_pos", "W_out", "b_out")}
    new["W_in"] = np.einsum("bd,bdh->bdh", net["alpha"][:-1], net["W_in"])
    new["b_in"] = net["b_in"]
    if net["beta"] is not None:
        shift = np.einsum("bd,bdh->bh", net["beta"][:-1], net["W_in"])
        new["b_in"] = shift if net["b_in"] is None else net["b_in"] + shift
    head = net["W_embd"].T if net["W_head"] is None else net["W_head"]
    new["W_head"], new["b_head"] = reader(head, net["b_head"], net["alpha"][-1], None)
    if net["beta"] is not None:
        new["b_head"] = net["beta"][-1] @ head
    return new


@right("a1.fuse")
def by_two_families(net):
    head = net["W_head"] if net["W_head"] is not None else np.transpose(net["W_embd"])
    if net["norm"] == "RMSNorm":
        return {
            "W_embd": net["W_embd"],
            "W_pos": None,
            "b_in": None,
            "W_out": net["W_out"],
            "b_out": None,
            "b_head": None,
            "W_in": net["alpha"][:-1, :, None] * net["W_in"],
            "W_head": net["alpha"][-1, :, None] * head,
        }
    M = np.eye(net["W_embd"].shape[1]) - 1 / net["W_embd"].shape[1]
    return {
        "W_embd": net["W_embd"] @ M,
        "W_pos": net["W_pos"] @ M,
        "W_out": net["W_out"] @ M,
        "b_out": net["b_out"] @ M,
        "W_in": net["alpha"][:-1, :, None] * net["W_in"],
        "b_in": net["b_in"] + (net["beta"][:-1, None, :] @ net["W_in"])[:, 0],
        "W_head": net["alpha"][-1, :, None] * head,
        "b_head": net["beta"][-1] @ head,
    }


@right("a1.fuse")
def with_zeros_for_none(net):
    B, D, H = net["W_in"].shape
    V = len(net["W_embd"])
    beta = np.zeros((B + 1, D)) if net["beta"] is None else net["beta"]
    head = net["W_embd"].T if net["W_head"] is None else net["W_head"]
    b_in = np.zeros((B, H)) if net["b_in"] is None else net["b_in"].copy()
    b_head = np.zeros(V) if net["b_head"] is None else net["b_head"].copy()
    W_in = net["W_in"].copy()
    for i in range(B):
        b_in[i] += beta[i] @ W_in[i]
        W_in[i] = np.diag(net["alpha"][i]) @ W_in[i]
    b_head += beta[-1] @ head
    M = np.eye(D) - (1 / D if net["norm"] == "LayerNorm" else 0)
    return {
        "W_embd": net["W_embd"] @ M,
        "W_pos": None if net["W_pos"] is None else net["W_pos"] @ M,
        "W_in": W_in,
        "b_in": b_in if net["b_in"] is not None or net["beta"] is not None else None,
        "W_out": net["W_out"] @ M,
        "b_out": None if net["b_out"] is None else net["b_out"] @ M,
        "W_head": np.diag(net["alpha"][-1]) @ head,
        "b_head": b_head if net["beta"] is not None else None,
    }


def fuse_from_pieces(read, centre):
    """A right answer that uses these two functions."""

    def fuse(net):
        new = {"W_embd": net["W_embd"], "W_pos": net["W_pos"], "W_out": net["W_out"], "b_out": net["b_out"]}
        if net["norm"] == "LayerNorm":
            new = {name: None if value is None else centre(value) for name, value in new.items()}
        betas = [None] * len(net["alpha"]) if net["beta"] is None else list(net["beta"])
        biases = [None] * len(net["W_in"]) if net["b_in"] is None else list(net["b_in"])
        pairs = [read(*layer) for layer in zip(net["W_in"], biases, net["alpha"], betas)]  # noqa: B905 - shortest
        new["W_in"] = np.array([W for W, b in pairs])
        new["b_in"] = None if pairs[0][1] is None else np.array([b for W, b in pairs])
        head = net["W_embd"].T if net["W_head"] is None else net["W_head"]
        new["W_head"], new["b_head"] = read(head, net["b_head"], net["alpha"][-1], betas[-1])
        return new

    return fuse


right("a1.fuse")(fuse_from_pieces(diagonal_matrix, lambda x: x - np.mean(x, axis=-1, keepdims=True)))
right("a1.fuse")(fuse_from_pieces(einsum, lambda x: x - x.sum(-1)[..., None] / x.shape[-1]))
right("a1.fuse")(fuse_from_pieces(row_by_row, lambda x: np.matmul(x, np.eye(x.shape[-1]) - 1 / x.shape[-1])))
right("a1.fuse")(
    fuse_from_pieces(by_probing, lambda x: (x.T - x.T.mean(0)).T if x.ndim < 3 else x - x.mean(2)[:, :, None])
)

# Wrong answers


@wrong("a1.center", "M", "the mean in place of every number")
def mean_instead_of_the_rest(D):
    return np.ones((D, D)) / D


@wrong("a1.center", "M", "mean zero")
def divided_by_one_less(D):
    return np.eye(D) - np.ones((D, D)) / max(1, D - 1)


@wrong("a1.fuse_reader", "line", "W * alpha", "ValueError")
def alpha_on_outputs(W, b, alpha, beta):
    return W * alpha, b


@wrong("a1.fuse_reader", "W:", "alpha is not in it")
def alpha_forgotten(W, b, alpha, beta):
    return W, reader(W, b, alpha, beta)[1]


@wrong("a1.fuse_reader", "b:", "beta went through the scaled W")
def beta_through_scaled_weights(W, b, alpha, beta):
    fused = alpha[:, None] * W
    return fused, b if beta is None else beta @ fused + (0 if b is None else b)


@wrong("a1.fuse_reader", "b:", "got None")
def beta_lost_where_there_is_no_bias(W, b, alpha, beta):
    return alpha[:, None] * W, None if b is None else reader(W, b, alpha, beta)[1]


@wrong("a1.fuse_reader", "b:", "beta is lost")
def beta_lost(W, b, alpha, beta):
    return alpha[:, None] * W, np.zeros(W.shape[1]) if b is None and beta is not None else b


@wrong("a1.fuse_reader", "W: the function changes its argument")
def input_changed(W, b, alpha, beta):
    fused = reader(W, b, alpha, beta)
    W *= alpha[:, None]
    return fused


@wrong("a1.fuse_writer", "W:", "the wrong axis", "b ok")
def mean_over_the_wrong_axis(W, b):
    return W - W.mean(axis=0), b - b.mean()


@wrong("a1.fuse_writer", "b:", "written to the signal too", "W ok")
def output_bias_not_centred(W, b):
    return W - W.mean(axis=1, keepdims=True), b


def fused(net):
    return all_blocks_at_once(net)


@wrong("a1.fuse", "W_pos:", "LayerNorms would subtract its mean", "W_embd ok")
def positions_not_centred(net):
    return {**fused(net), "W_pos": net["W_pos"]}


@wrong("a1.fuse", "W_embd:", "scaled with the tied head")
def tied_embedding_scaled(net):
    new = fused(net)
    return {**new, "W_embd": np.ascontiguousarray(new["W_head"].T)} if net["W_head"] is None else new


@wrong("a1.fuse", "W_embd:", "an RMSNorm subtracts no mean")
def llama_centred(net):
    new = fused(net)
    for name in ("W_embd", "W_out"):
        new[name] = new[name] - new[name].mean(-1, keepdims=True)
    return new


@wrong("a1.fuse", "W_head:", "alpha is not in it")
def head_forgotten(net):
    return {**fused(net), "W_head": net["W_embd"].T if net["W_head"] is None else net["W_head"]}


@wrong("a1.fuse", "b_out[0]:", "written to the signal too", "W_out ok")
def output_biases_not_centred(net):
    return {**fused(net), "b_out": net["b_out"]}


@wrong("a1.fuse", "net: the function changes its argument")
def network_changed(net):
    new = fused(net)
    net["W_out"] -= net["W_out"].mean(-1, keepdims=True)
    return new


@wrong("a1.fuse", "b_in[0]:", "beta went through the scaled W")
def beta_through_scaled_weights_of_a_block(net):
    new = fused(net)
    if net["beta"] is not None:
        new["b_in"] = net["b_in"] + np.einsum("bd,bdh->bh", net["beta"][:-1], new["W_in"])
    return new


# Right answers with other weights, or another form


def readers_centred_too(net):
    new = deepcopy_and_change(net)
    if net["norm"] == "LayerNorm":
        for name in ("W_in", "W_head"):
            new[name] -= new[name].mean(-2, keepdims=True)
    return new


right("a1.fuse")(readers_centred_too)


@right("a1.fuse")
def zeros_in_place_of_no_biases(net):
    B, D, H = net["W_in"].shape
    new = deepcopy_and_change(net)
    zeros = {"b_in": np.zeros((B, H)), "b_out": np.zeros((B, D)), "b_head": np.zeros(len(net["W_embd"]))}
    return new | {name: zero for name, zero in zeros.items() if new[name] is None} | {"alpha": None, "norm": "RMSNorm"}


@right("a1.fuse")
def only_what_there_is(net):
    return {name: value for name, value in deepcopy_and_change(net).items() if value is not None}


@right("a1.fuse")
def rotated_besides(net):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(net["W_embd"].shape[1],) * 2))[0]
    new = deepcopy_and_change(net)
    for name in ("W_embd", "W_pos", "W_out", "b_out"):
        new[name] = None if new[name] is None else new[name] @ Q
    return new | {"W_in": Q.T @ new["W_in"], "W_head": Q.T @ new["W_head"]}


@right("a1.fuse_reader")
def zeros_for_no_bias(W, b, alpha, beta):
    return alpha[:, None] * W, (0 if beta is None else beta @ W) + (np.zeros(W.shape[1]) if b is None else b)


@wrong("a1.fuse", "W_head:", "The embedding was centred first: the tied head is the embedding as it was.")
def tied_head_centred_before_alpha(net):
    if net["W_head"] is not None:
        return deepcopy_and_change(net)
    centred = net["W_embd"] - net["W_embd"].mean(-1, keepdims=True)
    return deepcopy_and_change({**net, "W_head": centred.T if net["norm"] == "LayerNorm" else net["W_embd"].T})


@wrong("a1.fuse", "b_out[0]:", "It is as it was", "W_in ok")
def readers_centred_in_place_of_the_output_biases(net):
    return {**readers_centred_too(net), "b_out": net["b_out"]}


@wrong("a1.fuse", "alpha: the fused network still has it")
def norms_keep_their_weights(net):
    return {**net, **deepcopy_and_change(net)}


@wrong("a1.fuse", "b_in[0]:", "beta went through the centred W")
def beta_through_centred_weights(net):
    new = readers_centred_too(net)
    if net["norm"] == "LayerNorm":
        centred = net["W_in"] - net["W_in"].mean(1, keepdims=True)
        new["b_in"] = net["b_in"] + np.einsum("bd,bdh->bh", net["beta"][:-1], centred)
    return new


@wrong("a1.fuse", "b_out[0]:", "first difference")
def output_bias_that_is_not_there(net):
    new = deepcopy_and_change(net)
    return new | {"b_out": np.ones((2, net["W_embd"].shape[1])) if net["b_out"] is None else new["b_out"] * 0}
