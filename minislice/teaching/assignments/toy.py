"""Small networks for judges: the paper's Algorithm 1 in NumPy, at full width.

A network is a dictionary of B blocks, V tokens, T positions, width D, and H neurons in a block. An absent part is None:

    W_embd [V, D]   W_pos [T, D]    W_in [B, D, H]   b_in [B, H]   W_out [B, H, D]   b_out [B, D]
    W_head [D, V] (None: tied, the embedding's transpose)    b_head [V]

Before fusion it also has norms: norm "LayerNorm" or "RMSNorm", alpha [B + 1, D], beta [B + 1, D]. A block is

    X <- X + sigma(norm(X) W_in + b_in) W_out + b_out

where sigma averages over the tokens so far, as attention does, and takes the tanh. A parallel block has a second writer
with another nonlinearity, as attention and MLP of one layer: W_out2 [B, H, D], b_out2 [B, D]. With residual adapters
S [B, D, D] the residual connection carries X S.
"""

import numpy as np
from numpy.random import Generator

from .exercise import Case

EPS = 1e-3


def sizes(rng: Generator, smallest: int) -> list[tuple[int, int]]:
    """Five pairs of D and H that differ, D ascending from `smallest`."""
    return [(D, D + int(rng.integers(1, 5))) for D in range(smallest, smallest + 5)]


def widths(rng: Generator) -> list[Case]:
    return [Case({"D": D}, {"D": D}) for D in range(2, 7)]


def haar(rng: Generator, D: int, *more: int) -> np.ndarray:
    """Random rotations of D dimensions, [*more, D, D]: products of reflections, no QR and no signs to fix."""
    Q = np.broadcast_to(np.eye(D), (*more, D, D)).copy()
    for _ in range(D):
        v = rng.standard_normal((*more, D, 1))
        Q = Q - 2 * v @ (v.swapaxes(-1, -2) @ Q) / (v.swapaxes(-1, -2) @ v)
    return Q


def network(rng: Generator, D: int, H: int, B: int = 2, V: int = 7, T: int = 5, biases: bool = True) -> dict:
    """A fused network with positions and a head of its own."""
    shapes = {"W_embd": (V, D), "W_pos": (T, D), "W_in": (B, D, H), "b_in": (B, H), "W_out": (B, H, D), "b_out": (B, D)}
    shapes |= {"W_head": (D, V), "b_head": (V,)}
    net = {name: rng.standard_normal(shape) for name, shape in shapes.items() if biases or name[0] == "W"}
    for name in ("W_in", "W_out", "W_head"):
        net[name] *= net[name].shape[-2] ** -0.5
    return {name: net.get(name) for name in shapes}


def signals(net: dict, tokens: np.ndarray) -> list[np.ndarray]:
    """The signal at every boundary, B + 1 of them, [N, D]."""
    x = net["W_embd"][tokens]
    if net["W_pos"] is not None:
        x = x + net["W_pos"][: len(tokens)]
    boundaries = [x]
    for block in range(len(net["W_in"])):
        h = affine(net, "_in", block, normalised(net, x, block))
        x = x if net.get("S") is None else x @ net["S"][block]
        x = x + affine(net, "_out", block, sigma(h))
        if net.get("W_out2") is not None:
            x = x + affine(net, "_out2", block, np.maximum(h, 0))
        boundaries.append(x)
    return boundaries


def logits(net: dict, tokens: np.ndarray) -> np.ndarray:
    x = normalised(net, signals(net, tokens)[-1], -1)
    out = x @ (net["W_embd"].T if net["W_head"] is None else net["W_head"])
    return out if net["b_head"] is None else out + net["b_head"]


def sequences(net: dict) -> list[np.ndarray]:
    """Token sequences in which every token stands at every position."""
    V, T = len(net["W_embd"]), 5 if net["W_pos"] is None else len(net["W_pos"])
    return [(start + np.arange(T)) % V for start in range(V)]


def part(net: dict, name: str, block: int) -> np.ndarray | None:
    """The entry of one block, or None if the network doesn't have this part."""
    return None if net.get(name) is None else net[name][block]


def affine(net: dict, name: str, block: int, x: np.ndarray) -> np.ndarray:
    """One linear layer of one block, x W + b; `name` is "_in", for example."""
    y = x @ net["W" + name][block]
    return y if net["b" + name] is None else y + net["b" + name][block]


def normalised(net: dict, x: np.ndarray, block: int) -> np.ndarray:
    """What a block, or the head (-1), reads of the signal."""
    x = centred(net, x)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + EPS)
    x = x if net.get("alpha") is None else x * net["alpha"][block]
    return x if net.get("beta") is None else x + net["beta"][block]


def centred(net: dict, x: np.ndarray) -> np.ndarray:
    """The first step of a LayerNorm; other norms don't take it."""
    return x - x.mean(-1, keepdims=True) if net.get("norm") == "LayerNorm" else x


def sigma(h: np.ndarray) -> np.ndarray:
    """The mean over the tokens so far, as in attention, then the tanh; [N, H] to [N, H]."""
    return np.tanh(np.cumsum(h, 0) / np.arange(1, len(h) + 1)[:, None])
