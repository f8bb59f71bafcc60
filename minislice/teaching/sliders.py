"""One cell of a notebook with a slider: drag it, and the figure follows.

A slider is a function of one value that draws a figure, and `slide` shows it. In Jupyter, VS Code and Colab a person
can drag; where nobody can (nbconvert, the tests), the figure of the starting value is drawn once. That one figure is
what a committed notebook holds, so GitHub shows it.
"""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes
from torch import Tensor
from transformers import PreTrainedModel

from ..adapters import align
from ..architecture.network import network
from ..invariance import logits_of, relative_error
from ..measuring.paired import Ratio
from ..rotation import rotate_network
from . import plots

FRONT_ENDS = ("JPY_SESSION_NAME", "COLAB_RELEASE_TAG", "VSCODE_PID")  # each sets its own variable in the kernel


def slide(draw: Callable[[float], object], values: Sequence[float], start: float, label: str) -> None:
    """Show `draw(value)` below a slider over the values; without a front end or ipywidgets, `draw(start)` alone.

    The figure is drawn again when the slider is let go.
    """
    if not any(name in os.environ for name in FRONT_ENDS) or find_spec("ipywidgets") is None:
        draw(start)
        return
    import ipywidgets

    def redraw(value: float) -> None:
        draw(value)
        plt.show()

    look = {"description": label, "continuous_update": False, "layout": ipywidgets.Layout(width="34em")}
    ipywidgets.interact(redraw, value=ipywidgets.SelectionSlider(options=values, value=start, **look))


def turn(model: PreTrainedModel, tokens: Int64[Tensor, "sequences tokens"]) -> Callable[[float], list[Axes]]:
    """Rotate the first two dimensions of a fused model's signal by an angle, in degrees: weights turn, logits stay."""
    dense, logits = network(model), logits_of(model, tokens)

    def draw(degrees: float) -> list[Axes]:
        Q = torch.eye(dense.trained_width, dtype=torch.float64)
        Q[:2, :2] = about(2, torch.tensor(degrees, dtype=torch.float64).deg2rad())[:2, :2]
        rotated = network(copy.deepcopy(model))
        rotate_network(rotated, [Q.to(tokens.device)] * (len(rotated.blocks) + 1))
        rows = {"trained": dense, f"turned by {degrees:g}°": rotated}
        left, right = axes = plots.panels(2)
        pairs = {name: net.blocks[0].w_in[0].weight[:24, :2].detach().cpu() for name, net in rows.items()}
        plots.points(pairs, "row 1 of W_in", "row 2 of W_in", title="block 0: 24 columns of W_in", ax=left)
        error = relative_error(logits_of(rotated.model, tokens), logits)
        curves = {name: (range(30), logits_of(net.model, tokens)[0].flatten()[:30]) for name, net in rows.items()}
        plots.lines(curves, "vocabulary entry", "logit", title=f"largest error {error:.0e}", ax=right)
        return axes

    return draw


def about(axis: int, angle: Float64[Tensor, ""]) -> Float64[Tensor, "3 3"]:
    """The rotation of three dimensions about one of the axes, by an angle in radians."""
    Q, (i, j) = torch.eye(3, dtype=torch.float64), [other for other in range(3) if other != axis]
    Q[i, i] = Q[j, j] = angle.cos()
    Q[i, j], Q[j, i] = -angle.sin(), angle.sin()
    return Q


def columns(eigenvalues: Float64[Tensor, " D"], cost: Callable[[int], Ratio]) -> Callable[[int], list[Axes]]:
    """Keep the first k components of a spectrum: what is deleted, and its cost, the perplexity over the dense one's."""
    share, known = (eigenvalues / eigenvalues.sum()).cpu().clamp(min=1e-9), {len(eigenvalues): Ratio(1.0, 0.0)}

    def draw(k: int) -> list[Axes]:
        known[k] = known.get(k) or cost(k)
        left, right = axes = plots.panels(2)
        spectrum = {"kept": (range(1, k + 1), share[:k]), "deleted": (range(k + 1, len(share) + 1), share[k:])}
        title = f"k = {k}: {share[k:].sum():.2%} of the variance deleted"
        plots.lines(spectrum, "component", "share of the variance", title=title, log_y=True, markers=False, ax=left)
        widths = sorted(known)
        tried = (widths, [known[width].ratio for width in widths], [known[width].standard_error for width in widths])
        title = f"k = {k}: {known[k]}"
        plots.lines({"widths tried": tried}, "width k", "perplexity, sliced / dense", title=title, ax=right)
        return axes

    return draw


def tilt(degrees: float) -> list[Axes]:
    """Two planes (D = 3, k = 2) that meet at an angle, in degrees, and the adapter between them.

    The second plane's basis is turned inside its plane, as principal components would be; aligning takes that back.
    """
    angle, inside = torch.tensor([degrees, 50.0], dtype=torch.float64).deg2rad()
    P = torch.eye(3, 2, dtype=torch.float64)
    Q_next = about(0, angle) @ about(2, inside)  # the first two columns span the second plane
    adapters = {"S, as the components come": P.T @ Q_next[:, :2], "S, after aligning": P.T @ align(P, Q_next, 2)[0]}
    axes = plots.panels(2, width=3.4)
    for ax, (title, S) in zip(axes, adapters.items(), strict=True):
        plots.matrix(S.abs(), "column", "row", "|entry|", title=title, largest=1.0, ax=ax)
        ax.set(xticks=(0, 1), yticks=(0, 1), xticklabels="12", yticklabels="12")
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            ax.text(column, row, f"{S[row, column]:.2f}", ha="center", va="center", bbox={"fc": "white", "ec": "none"})
    return axes


def cutting(measured: Mapping[str, Mapping[float, tuple[int, Ratio]]]) -> Callable[[float], Axes]:
    """Delete a share of the columns: for each form of adapter and share, the parameters, and perplexity over dense."""

    def draw(slicing: float) -> Axes:
        curves = {}
        for form, line in measured.items():
            sizes, ratios = zip(*line.values(), strict=True)
            error = [ratio.standard_error for ratio in ratios]
            label = f"{form}: {line[slicing][1]}"
            curves[label] = ([size / 1e6 for size in sizes], [ratio.ratio for ratio in ratios], error)
        ax = plots.lines(curves, "parameters, all (millions)", "perplexity, sliced / dense")
        for index, line in enumerate(measured.values()):
            size, ratio = line[slicing]
            ax.plot(size / 1e6, ratio.ratio, "o", color=plots.COLOURS[index], markersize=12, markerfacecolor="none")
        ax.set_title(f"{slicing:.0%} of the columns deleted")
        return ax

    return draw
