"""A1: a network with LayerNorms becomes one whose norms only divide by a length (section 3.2)."""

from dataclasses import replace
from typing import Any

import numpy as np

from . import toy
from .exercise import Case, Cases, Failure
from .forms import Array, Form, Value
from .judging import Places, Wanted, close, compared
from .markdown import read


def _center(D: int) -> Wanted:
    wanted = toy.centred({"norm": "LayerNorm"}, np.eye(D))
    mistakes = {"This M puts the mean in place of every number; subtract it instead.": np.eye(D) - wanted}
    yield "M", wanted, mistakes, "what must x M be for x = (1, 1, ..., 1)?"


def _reader_cases(rng: np.random.Generator) -> Cases:
    present = [(True, True), (False, True), (False, False), (True, False), (True, True)]
    for (D, H), (bias, shift) in zip(toy.sizes(rng, 2), present, strict=True):
        W, b = rng.standard_normal((D, H)), rng.standard_normal(H) if bias else None
        scale, beta = rng.uniform(1.5, 2.5, D), rng.standard_normal(D) if shift else None
        yield Case({"D": D, "H": H}, {"W": W, "b": b, "alpha": scale, "beta": beta})


def _reader(places: Places, which: str, layer: dict[str, Any], got: tuple, norm: str = "RMSNorm") -> Places:
    """Add what a fused W and b must do on every row that is normalised, but neither scaled nor shifted.

    Args:
        which: the end of the places' names.
        norm: behind a fused LayerNorm all rows have mean zero, so the mean of each column of W is free.
    """
    W, b, alpha, beta = layer.values()
    before, shift = 0 * W[0] if b is None else b, 0 * W[:, 0] if beta is None else beta
    scaling = {"W is as it was: alpha is not in it.": W}
    hint = "which numbers does alpha multiply: those that come into W, or those that come out?"
    alike = close if norm == "RMSNorm" else _alike_on_centred_rows
    places.add(f"W{which}", np.diag(alpha) @ W, got[0], scaling, hint, alike)
    mistakes = {
        "beta went through the scaled W: the norm adds beta behind alpha.": before + (alpha * shift) @ W,
        "beta is lost.": before,
        "b itself is lost.": shift @ W,
    }
    hint = "what comes out of the linear layer where the normalised row is zero?"
    got_b = 0 * before if got[1] is None else got[1]
    return places.add(f"b{which}", before + shift @ W, got_b, {} if beta is None else mistakes, hint)


def _alike_on_centred_rows(expected: np.ndarray, got: np.ndarray) -> bool:
    return close(expected - expected.mean(0), got - got.mean(0))


def _writer_cases(rng: np.random.Generator) -> Cases:
    for D, H in toy.sizes(rng, 2):
        yield Case({"D": D, "H": H}, {"W": rng.standard_normal((H, D)), "b": rng.standard_normal(D)})


def _writer(
    places: Places,
    which: str,
    layer: dict[str, Any],
    got: tuple,
    norm: str,
    hint: str = "what is written for one neuron is one row of W.",
) -> Places:
    """Add what W and b must write where the norms are of this kind."""
    W, b = layer.values()
    wrong = {
        "It is as it was: the LayerNorms would subtract its mean.": W,
        "The mean is taken over the wrong axis: its columns have mean zero, its rows should.": W - W.mean(0),
    }
    if norm == "RMSNorm":
        wrong["It is centred, but an RMSNorm subtracts no mean."] = W - W.mean(-1, keepdims=True)
    places.add(f"W{which}", toy.centred({"norm": norm}, W), got[0], wrong, hint)
    if b is not None or got[1] is not None:
        before = 0 * W[0] if b is None else b
        as_it_was = "It is as it was: it is written to the signal too, and the LayerNorms would subtract its mean."
        got_b = 0 * before if got[1] is None else got[1]
        wanted, mistakes = toy.centred({"norm": norm}, before), {} if b is None else {as_it_was: b}
        places.add(f"b{which}", wanted, got_b, mistakes, "who writes the signal besides W_out?")
    return places


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
    none = "None: a norm without weights has none"
    gone = {name: Value(name, none, lambda weights: weights is None) for name in ("alpha", "beta")}
    return form | {"W_head": Array("W_head", (D, V))} | gone


def _judge_fuse(fused: dict, net: dict) -> Failure | None:
    """The logits decide; if they differ, the places say where to look."""
    if all(close(toy.logits(net, tokens), toy.logits(fused, tokens)) for tokens in toy.sequences(net)):
        return None
    places, norm, tied = Places(), net["norm"], net["W_head"] is None
    for name in ("_embd", "_pos"):
        if net["W" + name] is not None:
            hint = "who writes the signal before the first block, and which norm would subtract its mean?"
            _writer(places, name, {"W": net["W" + name], "b": None}, (fused["W" + name], None), norm, hint)
    for block in range(len(net["W_in"])):
        layer = {name: toy.part(net, name, block) for name in ("W_in", "b_in", "alpha", "beta")}
        _reader(places, f"_in[{block}]", layer, [toy.part(fused, name, block) for name in ("W_in", "b_in")], norm)
        layer = {name: toy.part(net, name, block) for name in ("W_out", "b_out")}
        _writer(places, f"_out[{block}]", layer, [toy.part(fused, name, block) for name in layer], norm)
    head = net["W_embd"].T if tied else net["W_head"]
    layer = {"W": head, "b": net["b_head"], "alpha": net["alpha"][-1], "beta": toy.part(net, "beta", -1)}
    _reader(places, "_head", layer, (fused["W_head"], fused["b_head"]), norm)
    failure = places.failure()
    if failure and tied and failure.where == "W_embd" and close(fused["W_head"], fused["W_embd"].T):
        sentence = "The embedding is scaled with the tied head: give the head a matrix of its own."
        return replace(failure, mistake=sentence)
    return failure


A1, check = read(
    "a1",
    center=(toy.widths, *compared(_center)),
    fuse_reader=(
        _reader_cases,
        lambda W, b, alpha, beta: (Array("W", W.shape), Array("b", W.shape[1:], optional=b is None and beta is None)),
        lambda result, **layer: _reader(Places(), "", layer, result).failure(),
    ),
    fuse_writer=(
        _writer_cases,
        lambda W, b: (Array("W", W.shape), Array("b", b.shape)),
        lambda result, **layer: _writer(Places(), "", layer, result, "LayerNorm").failure(),
    ),
    fuse=(_fuse_cases, _fuse_form, _judge_fuse),
)
