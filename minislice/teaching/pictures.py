"""Drawings: the network as a row of blocks, and the matrices that lose rows and columns."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .plots import COLOURS

BOUNDARY, ADAPTER, DELETED = COLOURS[1], COLOURS[2], "0.93"
ROW, STREAM, BRANCH = 0.62, 0.0, -1.35  # the height of a box; where the residual stream and the branches are


def architecture() -> Axes:
    """Every supported model: embeddings, blocks in a row, a final norm and a head, with the boundaries between them.

    The picture shows two blocks: one sequential layer of a trained model, attention and MLP.
    """
    ax = _blank((10.2, 3.3), (-1.55, 15.05), (-2.75, 2.1))
    _box(ax, 0.0, STREAM, 1.1, "$W_{embd}$")
    _arrow(ax, (-1.4, STREAM), (-0.55, STREAM), "tokens")
    for index, (start, before, name) in enumerate(((1.55, 0.55, "attention"), (6.0, 5.25, "MLP"))):
        _arrow(ax, (before, STREAM), (start + 1.3, STREAM))
        _boundary(ax, start - 0.35, f"boundary {index}")
        _block(ax, start, name)
    _boundary(ax, 10.1, "boundary 2")
    _arrow(ax, (9.8, STREAM), (10.7, STREAM))
    ax.text(11.05, STREAM, "···", ha="center", va="center")
    _boundary(ax, 11.75, "last boundary")
    _arrow(ax, (11.4, STREAM), (12.05, STREAM))
    _box(ax, 12.5, STREAM, 0.9, "norm")
    _arrow(ax, (12.95, STREAM), (13.2, STREAM))
    _box(ax, 13.7, STREAM, 1.0, "$W_{head}$")
    _arrow(ax, (14.2, STREAM), (15.0, STREAM), "logits")
    ax.annotate("", (1.2, 1.55), (10.1, 1.55), arrowprops={"arrowstyle": "|-|, widthA=0.3, widthB=0.3", "lw": 0.8})
    ax.text(5.65, 1.6, "one layer of the trained model", ha="center", va="bottom")
    under, grey = -2.3, {"color": "0.4"}
    ax.plot([0.0, 0.0, 13.7, 13.7], [-ROW / 2, under, under, -ROW / 2], linestyle=":", lw=1.2, **grey)
    ax.text(6.85, under - 0.08, "tied, in some models: one matrix", ha="center", va="top", fontsize="small", **grey)
    return ax


def cut(D: int, k: int, hidden: int, tokens: int, inner: int | None = None) -> Axes:
    """A block's signal and matrices, to scale, in the basis of the principal components. Deleted parts are hatched.

    Of D columns of the signal k are kept; of the `hidden` columns of W_in, and rows of W_out, `inner` are left.
    """
    inner = hidden if inner is None else inner
    if not 1 <= k <= D:
        raise ValueError(f"can't keep {k} of {D} columns: k is 1 to D")
    if not 0 <= inner <= hidden:
        raise ValueError(f"can't keep {inner} of {hidden} hidden units")
    matrices = [  # rows, columns, rows kept, columns kept
        ("$XQ$", tokens, D, tokens, k, "tokens", "D"),
        ("$Q^\\top W_{in}$", D, hidden, k, inner, "D", "hidden"),
        ("$W_{out}Q'$", hidden, D, inner, k, "hidden", "D"),
        ("$S=Q^\\top Q'$", D, D, k, k, "D", "D"),
    ]
    gap, height = 0.45 * D, max(tokens, D, hidden)
    length = sum(columns for _, _, columns, *_ in matrices) + gap * len(matrices)
    ax = _blank((8.0, 8.0 * 1.25 * height / length), (-gap, length - 0.4 * gap), (-0.12 * height, 1.13 * height))
    left = 0.0
    for name, rows, columns, rows_kept, columns_kept, side, top in matrices:
        base = height - rows
        ax.add_patch(Rectangle((left, base), columns, rows, fc=DELETED, ec="0.5", hatch="////", lw=0.8))
        kept = (left, base + rows - rows_kept)
        ax.add_patch(Rectangle(kept, columns_kept, rows_kept, fc="white", ec="black", lw=1.4))
        words = [
            f"{what} = {whole}" + (f" → {'k = ' * (what == 'D')}{less}" if less < whole else "")
            for what, whole, less in ((top, columns, columns_kept), (side, rows, rows_kept))
        ]
        middle, small = left + columns / 2, {"fontsize": "small"}
        ax.text(middle, base - 0.03 * height, name, ha="center", va="top")
        ax.text(middle, height * 1.03, words[0], ha="center", va="bottom", **small)
        ax.text(left - 0.03 * height, base + rows / 2, words[1], ha="right", va="center", rotation=90, **small)
        left += columns + gap
    return ax


def _blank(size: tuple[float, float], x: tuple[float, float], y: tuple[float, float]) -> Axes:
    ax = plt.subplots(figsize=size)[1]
    ax.set(xlim=x, ylim=y)
    ax.axis("off")
    return ax


def _block(ax: Axes, start: float, name: str) -> None:
    """X S + sigma(RMSNorm(X) W_in + b_in) W_out + b_out, 3.9 wide: the stream above, the branch below."""
    end = start + 3.55
    _box(ax, start + 1.65, STREAM, 0.7, "S", edge=ADAPTER, line="--")
    _arrow(ax, (start + 2.0, STREAM), (end - 0.2, STREAM))
    ax.plot([end], [STREAM], marker="o", markersize=13, markerfacecolor="white", markeredgecolor="black", zorder=3)
    ax.text(end, STREAM, "+", ha="center", va="center", zorder=4)
    ax.plot([start, start], [STREAM, BRANCH], color="black", lw=1.0)
    ax.plot([start, end], [BRANCH, BRANCH], color="black", lw=1.0)  # behind the boxes, which are white
    for offset, width, label in (
        (0.45, 0.75, "norm"),
        (1.3, 0.7, "$W_{in}$"),
        (2.05, 0.6, "σ"),
        (2.8, 0.7, "$W_{out}$"),
    ):
        _box(ax, start + offset, BRANCH, width, label)
    _arrow(ax, (end, BRANCH), (end, STREAM - 0.2))
    ax.text(start + 1.75, BRANCH - 0.42, f"block: {name}", ha="center", va="top", fontsize="small")


def _box(ax: Axes, x: float, y: float, width: float, label: str, edge: str = "black", line: str = "-") -> None:
    corner = (x - width / 2, y - ROW / 2)
    ax.add_patch(Rectangle(corner, width, ROW, fc="white", ec=edge, lw=1.2, ls=line, zorder=3))
    ax.text(x, y, label, ha="center", va="center", color=edge, zorder=4)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "lw": 1.0, "fc": "black"})
    if label:
        ax.text((start[0] + end[0]) / 2, start[1] + 0.12, label, ha="center", va="bottom", fontsize="small")


def _boundary(ax: Axes, x: float, label: str) -> None:
    ax.plot([x, x], [-0.75, 1.0], color=BOUNDARY, linestyle=(0, (2, 2)), lw=1.4)
    ax.text(x, 1.05, label, color=BOUNDARY, ha="center", va="bottom", fontsize="small")
