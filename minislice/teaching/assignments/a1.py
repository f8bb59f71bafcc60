"""A1: a network with LayerNorms becomes one whose norms only divide by a length (section 3.2)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from . import toy
from .exercise import Case, Failure
from .feedback import checker
from .forms import Array, Form, Gone, Maybe
from .judging import Places, close
from .markdown import read


def _center_cases(rng: Generator) -> list[Case]:
    return [Case({"D": D}, {"D": D}) for D in range(2, 7)]


def _judge_center(arguments: Mapping[str, Any], M: np.ndarray) -> Failure | None:
    wanted, _ = toy.weights_of(lambda x: x - x.mean(-1, keepdims=True), arguments["D"])
    mistakes = {"This M puts the mean in place of every number; subtract it instead.": np.eye(len(wanted)) - wanted}
    return Places().add("M", wanted, M, mistakes, "what must x M be for x = (1, 1, ..., 1)?").failure()


def _reader_cases(rng: Generator) -> list[Case]:
    cases = []
    for (D, H), (bias, shift) in zip(
        toy.sizes(rng, 2), [(True, True), (False, True), (False, False), (True, False), (True, True)], strict=True
    ):
        arguments = {
            "W": rng.standard_normal((D, H)),
            "b": rng.standard_normal(H) if bias else None,
            "alpha": rng.uniform(1.5, 2.5, D),
            "beta": rng.standard_normal(D) if shift else None,
        }
        cases.append(Case({"D": D, "H": H}, arguments))
    return cases


def _reader_form(arguments: Mapping[str, Any]) -> Form:
    D, H = arguments["W"].shape
    bias = Array("b", (H,))
    return Array("W", (D, H)), Maybe(bias) if arguments["b"] is None and arguments["beta"] is None else bias


def _judge_reader(arguments: Mapping[str, Any], result: tuple) -> Failure | None:
    return _reader(Places(), "", arguments, result).failure()


def _reader(
    places: Places, which: str, layer: Mapping[str, Any], got: tuple, norm: str = "RMSNorm", tied: bool = False
) -> Places:
    """Add what a fused W and b must do on every row that is normalised, but neither scaled nor shifted.

    Args:
        which: the end of the places' names.
        norm: behind a fused LayerNorm all rows have mean zero, so the mean of each column of W is free.
        tied: W is the transpose of the embedding.
    """
    W, b, alpha, beta = layer.values()

    def reads(x: np.ndarray) -> np.ndarray:
        x = x * alpha if beta is None else x * alpha + beta
        return x @ W if b is None else x @ W + b

    mistakes = {}
    if beta is not None:
        before = 0 * W[0] if b is None else b
        mistakes = {
            "beta went through the scaled W: the norm adds beta behind alpha.": before + (alpha * beta) @ W,
            "beta is lost.": before,
            "b itself is lost.": beta @ W,
            "beta went through the centred W: no norm subtracts the mean of beta.": before + beta @ (W - W.mean(0)),
        }
    W_wanted, b_wanted = toy.weights_of(reads, len(W))
    scaling = {"W is as it was: alpha is not in it.": W, "W is divided by alpha.": W / alpha[:, None]}
    hint = "which numbers does alpha multiply: those that come into W, or those that come out?"
    if tied:
        centred = toy.centred({"norm": norm}, W.T).T
        scaling["The embedding was centred first: the tied head is the embedding as it was."] = alpha[:, None] * centred
        scaling["The embedding was centred first, and alpha is not in it."] = centred
        hint = "the head had the embedding before it was changed. What does alpha multiply?"
    alike = close if norm == "RMSNorm" else _alike_on_centred_rows
    places.add(f"W{which}", W_wanted, got[0], scaling, hint, alike)
    hint = "what comes out of the linear layer where the normalised row is zero?"
    return places.add(f"b{which}", b_wanted, 0 * b_wanted if got[1] is None else got[1], mistakes, hint)


def _alike_on_centred_rows(expected: np.ndarray, got: np.ndarray) -> bool:
    return close(expected - expected.mean(0), got - got.mean(0))


def _writer_cases(rng: Generator) -> list[Case]:
    return [
        Case({"D": D, "H": H}, {"W": rng.standard_normal((H, D)), "b": rng.standard_normal(D)})
        for D, H in toy.sizes(rng, 2)
    ]


def _judge_writer(arguments: Mapping[str, Any], result: tuple) -> Failure | None:
    return _writer(Places(), "", arguments, result, "LayerNorm").failure()


def _writer(
    places: Places,
    which: str,
    layer: Mapping[str, Any],
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

    def writes(h: np.ndarray) -> np.ndarray:
        return toy.centred({"norm": norm}, h @ W if b is None else h @ W + b)

    W_wanted, b_wanted = toy.weights_of(writes, len(W))
    places.add(f"W{which}", W_wanted, got[0], wrong, hint)
    if b is not None or got[1] is not None:
        mistakes = {"It is as it was: it is written to the signal too, and the LayerNorms would subtract its mean.": b}
        got_b = 0 * b_wanted if got[1] is None else got[1]
        places.add(f"b{which}", b_wanted, got_b, {} if b is None else mistakes, "who writes the signal besides W_out?")
    return places


def _dense(rng: Generator, D: int, H: int, kind: str, tied: bool) -> dict[str, Any]:
    """A network before fusion: OPT's norms, positions and biases, or LLaMA's norms and neither."""
    opt = kind == "LayerNorm"
    net = toy.network(rng, D, H, biases=opt)
    net["W_pos"] = net["W_pos"] if opt else None
    net["W_head"], net["b_head"] = None if tied else net["W_head"], None
    alpha = rng.uniform(1.5, 2.5, (len(net["W_in"]) + 1, D))
    return {"norm": kind, "alpha": alpha, "beta": rng.standard_normal(alpha.shape) if opt else None, **net}


def _fuse_cases(rng: Generator) -> list[Case]:
    kinds = [("LayerNorm", False), ("LayerNorm", True), ("RMSNorm", False), ("RMSNorm", True), ("LayerNorm", True)]
    return [
        Case({"D": D, "H": H, "B": 2}, {"net": _dense(rng, D, H, *kind)})
        for (D, H), kind in zip(toy.sizes(rng, 3), kinds, strict=True)
    ]


def _fuse_form(arguments: Mapping[str, Any]) -> Form:
    net = arguments["net"]
    (V, D), (B, _, H) = net["W_embd"].shape, net["W_in"].shape
    weights = ("W_embd", "W_pos", "W_in", "W_out")
    form = {name: None if net[name] is None else Array(name, net[name].shape) for name in weights}
    form |= {"b_in": Maybe(Array("b_in", (B, H))), "b_out": Maybe(Array("b_out", (B, D)))}
    form |= {"W_head": Array("W_head", (D, V)), "b_head": Maybe(Array("b_head", (V,)))}
    gone = Gone("the fused network still has it; a norm without weights has none")
    return form | {"alpha": gone, "beta": gone}


def _judge_fuse(arguments: Mapping[str, Any], fused: dict) -> Failure | None:
    """The logits decide; if they differ, the places say where to look."""
    net, places = arguments["net"], Places()
    if all(close(toy.logits(net, tokens), toy.logits(fused, tokens)) for tokens in toy.sequences(net)):
        return None
    head = net["W_embd"].T if net["W_head"] is None else net["W_head"]
    for name in ("_embd", "_pos"):
        if net["W" + name] is not None:
            hint = "who writes the signal before the first block, and which norm would subtract its mean?"
            _writer(places, name, {"W": net["W" + name], "b": None}, (fused["W" + name], None), net["norm"], hint)
    for block in range(len(net["W_in"])):
        layer = {name: toy.part(net, name, block) for name in ("W_in", "b_in", "alpha", "beta")}
        got = fused["W_in"][block], toy.part(fused, "b_in", block)
        _reader(places, f"_in[{block}]", layer, got, net["norm"])
        layer = {name: toy.part(net, name, block) for name in ("W_out", "b_out")}
        _writer(places, f"_out[{block}]", layer, (fused["W_out"][block], toy.part(fused, "b_out", block)), net["norm"])
    layer = {"W": head, "b": net["b_head"], "alpha": net["alpha"][-1], "beta": toy.part(net, "beta", -1)}
    _reader(places, "_head", layer, (fused["W_head"], fused["b_head"]), net["norm"], net["W_head"] is None)
    failure = places.failure()
    if failure and net["W_head"] is None and failure.where == "W_embd" and close(fused["W_head"], fused["W_embd"].T):
        sentence = "The embedding is scaled with the tied head: give the head a matrix of its own."
        return replace(failure, mistake=sentence)
    return failure


A1 = read(
    "a1",
    center=(_center_cases, lambda arguments: Array("M", (arguments["D"],) * 2), _judge_center),
    fuse_reader=(_reader_cases, _reader_form, _judge_reader),
    fuse_writer=(
        _writer_cases,
        lambda arguments: (Array("W", arguments["W"].shape), Array("b", arguments["b"].shape)),
        _judge_writer,
    ),
    fuse=(_fuse_cases, _fuse_form, _judge_fuse),
)
check = checker(A1)
