"""A3: every boundary of a network gets a rotation of its own (theorem 1, section 3.3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Generator

from . import toy
from .exercise import Case, Failure
from .feedback import checker
from .forms import Array, Form
from .judging import Places, close
from .markdown import read


def _cases(rng: Generator) -> list[Case]:
    cases = []
    for (D, H), B in zip(toy.sizes(rng, 3), (2, 2, 1, 3, 2), strict=True):
        net = toy.network(rng, D, H, B) | {"W_out2": None, "b_out2": None}
        if D not in (3, 5):  # a parallel block
            net |= {"W_out2": rng.standard_normal((B, H, D)), "b_out2": rng.standard_normal((B, D))}
        if D == 4:
            net["W_pos"] = None
        cases.append(Case({"D": D, "H": H, "B": B}, {"weights": net, "Q": toy.haar(rng, D, B + 1)}))
    return cases


def _form(arguments: Mapping[str, Any]) -> Form:
    weights, Q = arguments.values()
    form = {name: None if value is None else Array(name, value.shape) for name, value in weights.items()}
    return form, Array("S", (len(Q) - 1, *Q.shape[1:]))


def _judge(arguments: Mapping[str, Any], result: tuple) -> Failure | None:
    """The signals and the logits decide; if they differ, the places say where to look."""
    net, Q = arguments.values()
    rotated, S = result
    if all(_same(net, {**rotated, "S": S}, Q, tokens) for tokens in toy.sequences(net)):
        return None
    places = Places()
    for name in ("W_embd", "W_pos"):
        if net[name] is not None:
            wrong = {"It is as it was.": net[name], "It is multiplied by Q^T.": net[name] @ Q[0].T}
            hint = "who writes the signal before the first block?"
            places.add(name, _writes(net[name], None, Q[0])[0], rotated[name], wrong, hint)
    for block in range(len(S)):
        before, behind = Q[block], Q[block + 1]
        layer, got = ([weights[name][block] for name in ("W_in", "b_in")] for weights in (net, rotated))
        _add_reader(places, f"_in[{block}]", layer, got, before)
        for name in ("_out", "_out2"):
            if net["W" + name] is not None:
                W, b = net["W" + name][block], net["b" + name][block]
                W_wanted, b_wanted = _writes(W, b, behind)
                wrong = {
                    "It is as it was.": W,
                    "It is multiplied by Q^T.": W @ behind.T,
                    "It is turned by the rotation of the boundary before the block, not behind it.": W @ before,
                }
                hint = "into which basis does this block write: the one it reads, or the next one?"
                places.add(f"W{name}[{block}]", W_wanted, rotated["W" + name][block], wrong, hint)
                wrong = {"It is as it was.": b, "It is multiplied by Q^T.": b @ behind.T}
                hint = f"who writes the signal besides W{name}?"
                places.add(f"b{name}[{block}]", b_wanted, rotated["b" + name][block], wrong, hint)
        wanted, _ = _writes(before.T, None, behind)  # where a row of the rotated signal, taken back, must arrive
        wrong = {
            "It is transposed: the signal is a row, and S stands on its right.": wanted.T,
            "It is one block early: it leads from the boundary before to this block's.": Q[block - 1].T @ before,
            "It is the identity: without an adapter the residual stays in the old basis.": np.eye(len(wanted)),
        }
        hint = f"X Q[{block}] comes in, X Q[{block + 1}] must go out."
        places.add(f"S[{block}]", wanted, S[block], wrong, hint)
    layer, got = ([weights[name] for name in ("W_head", "b_head")] for weights in (net, rotated))
    wrong = {"It is turned back from the boundary before the last block, not the last boundary.": Q[-2].T @ layer[0]}
    _add_reader(places, "_head", layer, got, Q[-1], wrong)
    return places.failure()


def _same(net: Mapping[str, Any], rotated: Mapping[str, Any], Q: np.ndarray, tokens: np.ndarray) -> bool:
    """The rotated network has the signal X Q at every boundary, and the same logits."""
    signals = zip(toy.signals(net, tokens), toy.signals(rotated, tokens), Q, strict=True)
    same = all(close(x, z @ Q_l.T) for x, z, Q_l in signals)
    return same and close(toy.logits(net, tokens), toy.logits(rotated, tokens))


def _writes(W: np.ndarray, b: np.ndarray | None, Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a writer that writes what W and b wrote, in the basis Q."""
    return toy.weights_of(lambda h: (h @ W if b is None else h @ W + b) @ Q, len(W))


def _add_reader(
    places: Places, which: str, layer: list, got: list, Q: np.ndarray, mistakes: Mapping[str, Any] | None = None
) -> None:
    """Add the weights of a reader that reads a row x Q as W and b, its `layer`, read x."""
    W, b = layer
    W_wanted, b_wanted = toy.weights_of(lambda z: z @ Q.T @ W + b, len(W))
    wrong = {"It is as it was.": W, "It is Q W: the transpose is missing.": Q @ W, **(mistakes or {})}
    hint = "x Q comes in. What must W begin with, so that x W comes out?"
    places.add(f"W{which}", W_wanted, got[0], wrong, hint)
    places.add(f"b{which}", b_wanted, got[1], hint="it is added behind W, where the signal's basis is left behind.")


PARTS = {"W_embd": 2, "W_pos": 2, "W_in b_in": 2, "W_out W_out2": 2, "b_out b_out2": 2, "S": 3, "W_head b_head": 2}

A3 = read("a3", rotate=(_cases, _form, _judge, PARTS))
check = checker(A3)
