"""A1: a network with LayerNorms becomes one whose norms only divide by a length (section 3.2)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from . import toy
from .exercise import Case, Cases, Failure, Question
from .forms import Array, Form
from .judging import Place, Wanted, close, compared, first_wrong
from .markdown import read


def _center(D: int) -> Wanted:
    wanted = toy.centred({"norm": "LayerNorm"}, np.eye(D))
    mistakes = {"This M puts the mean in place of every number; subtract it instead.": np.eye(D) - wanted}
    yield Place("M", wanted, mistakes, "what must x M be for x = (1, 1, ..., 1)?")


def _reader_cases(rng: np.random.Generator) -> Cases:
    present = [(True, True), (False, True), (False, False), (True, False), (True, True)]
    for (D, H), (bias, shift) in zip(toy.sizes(rng, 2), present, strict=True):
        W, b = rng.standard_normal((D, H)), rng.standard_normal(H) if bias else None
        scale, beta = rng.uniform(1.5, 2.5, D), rng.standard_normal(D) if shift else None
        yield Case({"D": D, "H": H}, {"W": W, "b": b, "alpha": scale, "beta": beta})


def _reader(W: np.ndarray, b: np.ndarray | None, alpha: np.ndarray, beta: np.ndarray | None) -> Wanted:
    before, shift = 0 * W[0] if b is None else b, 0 * W[:, 0] if beta is None else beta
    hint = "which numbers does alpha multiply: those that come into W, or those that come out?"
    yield Place("W", np.diag(alpha) @ W, {"W is as it was: alpha is not in it.": W}, hint)
    mistakes = {
        "beta went through the scaled W: the norm adds beta after alpha.": before + (alpha * shift) @ W,
        "beta is lost.": before,
        "b itself is lost.": shift @ W,
    }
    hint = "what comes out of the linear layer where the normalised row is zero?"
    yield Place("b", before + shift @ W, {} if beta is None else mistakes, hint)


def _writer_cases(rng: np.random.Generator) -> Cases:
    for D, H in toy.sizes(rng, 2):
        yield Case({"D": D, "H": H}, {"W": rng.standard_normal((H, D)), "b": rng.standard_normal(D)})


def _writer(W: np.ndarray, b: np.ndarray | None, norm: str = "LayerNorm", hint: str = "") -> Wanted:
    """What W and b must be where the norms are of this kind."""
    mistakes = {
        "It is as it was: the LayerNorms would subtract its mean.": W,
        "The mean is taken over the wrong axis: its columns have mean zero, its rows should.": W - W.mean(0),
    }
    if norm == "RMSNorm":
        mistakes["It is centred, but an RMSNorm subtracts no mean."] = W - W.mean(-1, keepdims=True)
    hint = hint or "what is written for one neuron is one row of W."
    yield Place("W", toy.centred({"norm": norm}, W), mistakes, hint)
    as_it_was = "It is as it was: it is written to the signal too, and the LayerNorms would subtract its mean."
    before, mistakes = (0 * W[0], {}) if b is None else (b, {as_it_was: b})
    yield Place("b", toy.centred({"norm": norm}, before), mistakes, "who writes the signal besides W_out?")


def _fuse_cases(rng: np.random.Generator) -> Cases:
    """Networks before fusion: OPT's norms, positions and biases, or LLaMA's norms and neither."""
    kinds = [("LayerNorm", False), ("LayerNorm", True), ("RMSNorm", False), ("RMSNorm", True), ("LayerNorm", True)]
    for (D, H), (kind, tied) in zip(toy.sizes(rng, 3), kinds, strict=True):
        opt = kind == "LayerNorm"
        net = toy.network(rng, D, H, biases=opt) | {"b_head": None}
        net |= ({} if opt else {"W_pos": None}) | ({"W_head": None} if tied else {})
        alpha = rng.uniform(1.5, 2.5, (len(net["W_in"]) + 1, D))
        norm = {"norm": kind, "alpha": alpha, "beta": rng.standard_normal(alpha.shape) if opt else None}
        yield Case({"D": D, "H": H, "B": 2}, {"net": norm | net})


def _fuse_form(net: dict) -> Form:
    (V, D), (B, _, H) = net["W_embd"].shape, net["W_in"].shape
    weights = ("W_embd", "W_pos", "W_in", "W_out")
    form = {name: None if net[name] is None else Array(name, net[name].shape) for name in weights}
    biases = {"b_in": (B, H), "b_out": (B, D), "b_head": (V,)}
    form |= {name: Array(name, shape, optional=True) for name, shape in biases.items()}
    return form | {"W_head": Array("W_head", (D, V)), "alpha": None, "beta": None}


def _judge_fuse(fused: dict, net: dict) -> Failure | None:
    """The logits decide; if they differ, the places say where to look."""
    if all(close(toy.logits(net, tokens), toy.logits(fused, tokens)) for tokens in toy.sequences(net)):
        return None
    failure, tied = first_wrong(_fuse_places(fused, net)), net["W_head"] is None
    if failure and tied and failure.where == "W_embd" and close(fused["W_head"], fused["W_embd"].T):
        sentence = "The embedding is scaled with the tied head: give the head a matrix of its own."
        return replace(failure, mistake=sentence)
    return failure or Failure("logits", "they differ")


def _fuse_places(fused: dict, net: dict) -> Iterator[Place]:
    norm = net["norm"]

    def alike(expected: np.ndarray, got: np.ndarray) -> bool:
        if norm == "LayerNorm":  # all rows have mean zero after it, so the mean of each column of W is free
            return close(expected - expected.mean(0), got - got.mean(0))
        return close(expected, got)

    def places(which: str, wanted: Iterable, block: int | None = None, alike: Callable = close) -> Iterator[Place]:
        for place in wanted:
            name = place.name + which
            got = fused[name] if block is None else toy.part(fused, name, block)
            name += "" if block is None else f"[{block}]"
            yield replace(place.of(got), name=name, alike=alike if place.name == "W" else close)

    for which in ("_embd", "_pos"):
        if net["W" + which] is not None:
            hint = "who writes the signal before the first block, and which norm would subtract its mean?"
            W, _ = _writer(net["W" + which], None, norm, hint)
            yield from places(which, [W])
    for block in range(len(net["W_in"])):
        reader = [toy.part(net, name, block) for name in ("W_in", "b_in", "alpha", "beta")]
        yield from places("_in", _reader(*reader), block, alike)
        writer = [toy.part(net, name, block) for name in ("W_out", "b_out")]
        yield from places("_out", _writer(*writer, norm), block)
    W_head = net["W_embd"].T if net["W_head"] is None else net["W_head"]
    head = _reader(W_head, net["b_head"], net["alpha"][-1], toy.part(net, "beta", -1))
    yield from places("_head", head, None, alike)


A1, check = read(
    "a1",
    center=compared(toy.widths, _center),
    fuse_reader=compared(_reader_cases, _reader),
    fuse_writer=compared(_writer_cases, _writer),
    fuse=Question(_fuse_cases, _fuse_form, _judge_fuse),
)
