"""A3: every boundary of a network gets a rotation of its own (theorem 1, section 3.3)."""

from collections.abc import Iterator

import numpy as np

from . import toy
from .exercise import Case, Cases, Failure, Question
from .forms import Array, Form
from .judging import Place, close, first_wrong
from .markdown import read


def _cases(rng: np.random.Generator) -> Cases:
    for (D, H), B in zip(toy.sizes(rng, 3), (2, 2, 1, 3, 2), strict=True):
        net = toy.network(rng, D, H, B) | {"W_out2": None, "b_out2": None}
        if D not in (3, 5):  # a parallel block
            net |= {"W_out2": rng.standard_normal((B, H, D)), "b_out2": rng.standard_normal((B, D))}
        if D == 4:
            net["W_pos"] = None
        yield Case({"D": D, "H": H, "B": B}, {"weights": net, "Q": toy.haar(rng, D, B + 1)})


def _form(weights: dict, Q: np.ndarray) -> Form:
    form = {name: None if value is None else Array(name, value.shape) for name, value in weights.items()}
    return form, Array("S", (len(Q) - 1, *Q.shape[1:]))


def _judge(result: tuple, weights: dict, Q: np.ndarray) -> Failure | None:
    """The signals X Q and the logits decide; if they differ, the places say where to look."""
    rotated, S = result
    for tokens in toy.sequences(weights):
        signals = toy.signals({**rotated, "S": S}, tokens)
        pairs = [(x, z @ Q_l.T) for x, z, Q_l in zip(toy.signals(weights, tokens), signals, Q, strict=True)]
        pairs.append((toy.logits(weights, tokens), toy.logits({**rotated, "S": S}, tokens)))
        if not all(close(dense, given) for dense, given in pairs):
            return first_wrong(_places(weights, rotated, S, Q)) or Failure("X Q", "it differs")
    return None


def _places(net: dict, rotated: dict, S: np.ndarray, Q: np.ndarray) -> Iterator[Place]:
    for name in ("W_embd", "W_pos"):
        if net[name] is not None:
            hint = "who writes the signal before the first block?"
            yield Place(name, net[name] @ Q[0], _not_rotated(net[name], Q[0]), hint).of(rotated[name])
    for block in range(len(S)):
        before, after = Q[block], Q[block + 1]
        yield _reader(f"W_in[{block}]", net["W_in"][block], rotated["W_in"][block], before)
        hint = "it is added after W, where the signal's basis is left behind."
        yield Place(f"b_in[{block}]", net["b_in"][block], hint=hint).of(rotated["b_in"][block])
        for name in ("_out", "_out2"):
            if net["W" + name] is not None:
                W, b = net["W" + name][block], net["b" + name][block]
                wrong = _not_rotated(W, after)
                wrong["It is turned by the rotation of the boundary before the block, not after it."] = W @ before
                hint = "into which basis does this block write: the one it reads, or the next one?"
                yield Place(f"W{name}[{block}]", W @ after, wrong, hint).of(rotated["W" + name][block])
                hint = f"who writes the signal besides W{name}?"
                place = Place(f"b{name}[{block}]", b @ after, _not_rotated(b, after), hint)
                yield place.of(rotated["b" + name][block])
        wanted = before.T @ after  # where a row of the rotated signal, taken back, must arrive
        wrong = {
            "It is transposed: the signal is a row, and S stands on its right.": wanted.T,
            "It is one block early: it leads from the boundary before to this block's.": Q[block - 1].T @ before,
            "It is the identity: without an adapter the residual stays in the old basis.": np.eye(len(wanted)),
        }
        yield Place(f"S[{block}]", wanted, wrong, f"X Q[{block}] comes in, X Q[{block + 1}] must go out.").of(S[block])
    W = net["W_head"]
    wrong = {"It is turned back from the boundary before the last block, not the last boundary.": Q[-2].T @ W}
    yield _reader("W_head", W, rotated["W_head"], Q[-1], wrong)
    yield Place("b_head", net["b_head"], hint="no basis is left after the head.").of(rotated["b_head"])


def _not_rotated(W: np.ndarray, Q: np.ndarray) -> dict[str, np.ndarray]:
    return {"It is as it was.": W, "It is multiplied by Q^T.": W @ Q.T}


def _reader(name: str, W: np.ndarray, got: np.ndarray, Q: np.ndarray, mistakes: dict | None = None) -> Place:
    """The weights of a reader that reads a row x Q as W read x."""
    wrong = {"It is as it was.": W, "It is Q W: the transpose is missing.": Q @ W, **(mistakes or {})}
    return Place(name, Q.T @ W, wrong, "x Q comes in. What must W begin with, so that x W comes out?").of(got)


PARTS = {"W_embd": 2, "W_pos": 2, "W_in b_in": 2, "W_out W_out2": 2, "b_out b_out2": 2, "S": 3, "W_head b_head": 2}

A3, check = read("a3", rotate=Question(_cases, _form, _judge, PARTS))
