import numpy as np


def center(D):
    """The matrix M [D, D] for which x M is x minus its mean, for every row x."""
    return np.eye(D) - np.ones((D, D)) / D


def fuse_reader(W, b, alpha, beta):
    """Move a norm's scale and shift into the linear layer that reads it.

    W [D, H], b [H] or None, alpha [D], beta [D] or None. Returns W [D, H] and b [H], or
    None for b where both b and beta are None.
    """
    fused = alpha[:, None] * W
    if beta is None:
        return fused, b
    return fused, beta @ W + (0 if b is None else b)


def fuse_writer(W, b):
    """Move the norms' mean subtraction into a linear layer that writes to the signal.

    W [H, D], b [D]. Returns W [H, D] and b [D].
    """
    return W - W.mean(axis=1, keepdims=True), b - b.mean()


def fuse(net):
    """The network with every norm replaced by the RMSNorm without weights. Same logits.

    net: a dictionary of norm, alpha, beta, W_embd, W_pos, W_in, b_in, W_out, b_out, W_head,
    b_head. Returns a new one, without the first three; None for what there isn't.
    """
    layernorm = net["norm"] == "LayerNorm"
    B = len(net["W_in"])
    alpha = net["alpha"]
    beta = [None] * (B + 1) if net["beta"] is None else net["beta"]
    b_in = [None] * B if net["b_in"] is None else net["b_in"]

    def centred(x):
        return x - x.mean(axis=-1, keepdims=True) if layernorm and x is not None else x

    fused = [fuse_reader(net["W_in"][i], b_in[i], alpha[i], beta[i]) for i in range(B)]
    W_in, b_in = zip(*fused, strict=True)
    W_head = net["W_embd"].T if net["W_head"] is None else net["W_head"]
    W_head, b_head = fuse_reader(W_head, net["b_head"], alpha[-1], beta[-1])
    return {
        "W_embd": centred(net["W_embd"]),
        "W_pos": centred(net["W_pos"]),
        "W_in": np.stack(W_in),
        "b_in": None if b_in[0] is None else np.stack(b_in),
        "W_out": centred(net["W_out"]),
        "b_out": centred(net["b_out"]),
        "W_head": W_head,
        "b_head": b_head,
    }
