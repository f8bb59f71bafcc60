"""The figures of the notebooks, in one style that is readable in grey and by colour-blind people.

Series differ by marker and line as well as by colour (Okabe and Ito's colours, ordered by lightness). Measured values
are solid; the paper's values are hollow markers with a label that begins with "paper".

Every figure has labels with units on both axes. `ax` are axes to draw into, instead of a new figure.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import AutoLocator, LogLocator, NullLocator
from torch import Tensor

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DEPTHS = "viridis_r"  # gets darker all the way, so it reads in grey
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)))
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")

Values = Sequence[float] | Tensor
Series = Mapping[str, tuple[Values, ...]]  # label: x values, y values and perhaps standard errors


def use_style() -> None:
    """Small figures, thin lines, no frame above and on the right."""
    plt.rcParams.update(
        {
            "figure.figsize": (5.6, 3.2),
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "font.size": 9,
            "legend.frameon": False,
            "legend.fontsize": "small",
            "lines.linewidth": 1.2,
            "lines.markersize": 4.5,
        }
    )


def panels(columns: int, *, width: float = 3.8, height: float = 3.0, share_y: bool = False) -> list[Axes]:
    """Axes side by side. `width` and `height` are the size of one of them, in inches."""
    _, axes = plt.subplots(1, columns, figsize=(width * columns, height), sharey=share_y, squeeze=False)
    return list(axes[0])


def lines(
    measured: Series,
    xlabel: str,
    ylabel: str,
    *,
    paper: Series | None = None,
    log_x: bool = False,
    markers: bool = True,
    **axes,
) -> Axes:
    """Measured series are lines with solid markers; the paper's series are hollow markers on a thin grey line.

    The bar at a marker is one standard error long on each side.
    """
    ax, paper = _axes(xlabel, ylabel, **axes), paper or {}
    for index, (label, (x, y, *errors)) in enumerate(measured.items()):
        marker = MARKERS[index % len(MARKERS)] if markers else None
        colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        ax.plot(_floats(x), _floats(y), marker=marker, color=colour, linestyle=line, label=label)
        for error in errors:
            ax.errorbar(_floats(x), _floats(y), _floats(error), fmt="none", ecolor=colour, elinewidth=1.0, capsize=2.5)
    for index, (label, (x, y)) in enumerate(paper.items()):
        _hollow(ax, index, label, x, y, color="0.5", linewidth=0.6)
    if log_x:
        ticks = sorted({value for x, *_ in (*measured.values(), *paper.values()) for value in _floats(x)})
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
    elif all(value == int(value) for x, *_ in measured.values() for value in _floats(x)):
        ax.locator_params(axis="x", integer=True)  # no boundary 0.5
    if len(measured) > 1 or paper:
        ax.legend()
    return ax


def by_parameters(rows: Sequence[Mapping], *, ax: Axes | None = None) -> Axes:
    """Rows of `beyond.compare`: perplexity against the number of parameters, one line for each variant.

    A bar is one paired standard error of the ratio to the dense perplexity.
    """
    done = [row for row in rows if row["status"] == "done"]
    (dense,) = (row for row in rows if row["variant"] == "dense")
    series = {}
    for row in done:
        point = row["parameters"] / 1e6, row["perplexity"], row["ratio_error"] * dense["perplexity"]
        series.setdefault(row["variant"], []).append(point)
    measured = {name: tuple(zip(*sorted(points), strict=True)) for name, points in series.items() if name != "dense"}
    title = f"{dense['model']}, {dense['parameters'] / 1e6:.4g}M parameters dense"
    ax = lines(measured, "total parameters (millions)", "perplexity", title=title, log_y=True, ax=ax)
    shown = [row["perplexity"] for row in done]
    wide = max(shown) > 10 * min(shown)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else AutoLocator())  # numbers, not powers of ten
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    threshold(ax, "dense", y=dense["perplexity"])
    return ax


def by_depth(curves: Sequence[tuple[Values, Values]], xlabel: str, ylabel: str, **axes) -> Axes:
    """One line for each boundary, from light (embeddings) to dark (head); a colour bar shows which is which."""
    ax, shades = _axes(xlabel, ylabel, **axes), plt.get_cmap(DEPTHS, len(curves))
    for depth, (x, y) in enumerate(curves):
        ax.plot(_floats(x), _floats(y), color=shades(depth), linewidth=1.0)
    scale = plt.cm.ScalarMappable(plt.Normalize(-0.5, len(curves) - 0.5), shades)
    ax.figure.colorbar(scale, ax=ax, label="boundary", ticks=range(0, len(curves), -(-len(curves) // 10)))
    return ax


def bars(
    groups: Sequence[str],
    measured: Mapping[str, Values],
    xlabel: str,
    ylabel: str,
    *,
    errors: Mapping[str, Values] | None = None,
    paper: Mapping[str, Values] | None = None,
    **axes,
) -> Axes:
    """One group of bars for each name, with one bar for each series; the paper's series are hollow markers.

    Args:
        errors: standard errors by the name of the series; drawn on both sides of the bar's end.
    """
    ax, paper, width = _axes(xlabel, ylabel, **axes), paper or {}, 0.8 / len(measured)
    for index, (label, values) in enumerate(measured.items()):
        places = [group + (index - (len(measured) - 1) / 2) * width for group in range(len(groups))]
        colour, hatch = COLOURS[(index + 1) % len(COLOURS)], HATCHES[index % len(HATCHES)]
        ax.bar(places, _floats(values), width, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=label)
        if label in (errors or {}):
            ax.errorbar(places, _floats(values), _floats(errors[label]), fmt="none", ecolor="black", capsize=3)
    for index, (label, values) in enumerate(paper.items()):
        _hollow(ax, index, label, range(len(groups)), values, color="black", linestyle="none")
    ax.set_xticks(range(len(groups)), groups)
    if len(measured) + len(paper) > 1:
        _legend(ax)
    return ax


def points(clouds: Mapping[str, Tensor], xlabel: str, ylabel: str, **axes) -> Axes:
    """Clouds of points in the plane, each [points, 2]; the first cloud is large and hollow, so others show inside."""
    ax = _axes(xlabel, ylabel, size=(3.6, 3.6), **axes)
    for index, (label, cloud) in enumerate(clouds.items()):
        shape = {"s": 12, "marker": "x", "color": COLOURS[index]}
        shape = shape if index else {"s": 60, "facecolors": "none", "edgecolors": "black"}
        ax.scatter(*_floats(cloud.T), label=label, linewidths=1.0, **shape)
    ax.set_aspect("equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(clouds))
    return ax


def matrix(values: Tensor, xlabel: str, ylabel: str, scale: str, *, largest: float | None = None, **axes) -> Axes:
    """A matrix as a picture: white is zero, black is the largest value; `scale` is the label of the shades."""
    ax = _axes(xlabel, ylabel, size=(3.8, 3.2), **axes)
    shades = {"cmap": "Greys", "vmin": 0, "vmax": largest, "interpolation": "nearest", "aspect": "auto"}
    ax.figure.colorbar(ax.imshow(values.detach().cpu().numpy(), **shades), ax=ax, label=scale, shrink=0.9)
    return ax


def threshold(ax: Axes, label: str, *, x: float | None = None, y: float | None = None) -> None:
    """A thin dotted line at one x or one y, with a label in the legend."""
    draw, place = (ax.axvline, x) if y is None else (ax.axhline, y)
    draw(place, color="0.4", linestyle=":", linewidth=1.0, label=label)
    _legend(ax)


def _axes(
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
    log_y: bool = False,
    ax: Axes | None = None,
    size: tuple[float, float] | None = None,
) -> Axes:
    """Axes with labels: the given ones, or those of a new figure of this size."""
    if not (xlabel and ylabel):
        raise ValueError("a figure needs a label with units on both axes")
    ax = plt.subplots(figsize=size)[1] if ax is None else ax
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log_y else "linear")
    return ax


def _hollow(ax: Axes, index: int, label: str, x: Values, y: Values, **line) -> None:
    marker = {"marker": MARKERS[index % len(MARKERS)], "markerfacecolor": "none"}
    ax.plot(_floats(x), _floats(y), label=f"paper: {label}", **marker, **line)


def _legend(ax: Axes) -> None:
    """The legend is inside the axes; beside them if there are many groups of bars or of error bars."""
    ax.legend(**({"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(ax.containers) > 2 else {}))


def _floats(values: Values) -> list:
    return values.detach().cpu().tolist() if isinstance(values, torch.Tensor) else [float(v) for v in values]
