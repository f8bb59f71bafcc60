"""A figure shows the data that it was given, with labels on both axes; the paper's values look like the paper's."""

import math
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgba

from minislice.corpus.embedded import paper_table
from minislice.teaching import pictures, plots

MEASURED = {"ours": ([0, 10, 20], [1.0, 1.5, 2.5]), "other": (torch.arange(3), torch.tensor([2.0, 1.0, 0.5]))}
PAPER = {"OPT-125M": ([0, 20], [1.0, 1.25])}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def draws(line, x, y):
    assert [float(v) for v in line.get_xdata()] == pytest.approx([float(v) for v in x])
    assert [float(v) for v in line.get_ydata()] == pytest.approx([float(v) for v in y])


def hollow(line):
    assert line.get_markerfacecolor() == "none" and line.get_marker() not in ("None", "", None)
    assert line.get_label().startswith("paper")


FIGURES = {
    "lines": lambda x, y: plots.lines(MEASURED, x, y),
    "by_depth": lambda x, y: plots.by_depth(list(MEASURED.values()), x, y),
    "bars": lambda x, y: plots.bars(["a"], {"b": [1.0]}, x, y),
    "matrix": lambda x, y: plots.matrix(torch.eye(3), x, y, "|entry|"),
    "points": lambda x, y: plots.points({"p": torch.eye(2)}, x, y),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_labels_and_refuses_to_go_without(name):
    ax = FIGURES[name]("slicing (%)", "perplexity")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("slicing (%)", "perplexity")
    for labels in (("", "perplexity"), ("slicing (%)", "")):
        with pytest.raises(ValueError, match="both axes"):
            FIGURES[name](*labels)


def test_lines_draw_the_data_and_the_papers_hollow():
    ax = plots.lines(MEASURED, "x", "y", paper=PAPER)
    ours, other, paper = ax.get_lines()
    draws(ours, *MEASURED["ours"])
    draws(other, *MEASURED["other"])
    draws(paper, *PAPER["OPT-125M"])
    hollow(paper)
    assert "none" not in [line.get_markerfacecolor() for line in (ours, other)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours", "other", "paper: OPT-125M"]


def test_series_differ_by_more_than_colour():
    series = {str(i): ([0, 1], [i, i]) for i in range(len(plots.COLOURS))}
    drawn = plots.lines(series, "x", "y").get_lines()
    assert len({line.get_color() for line in drawn}) == len({line.get_marker() for line in drawn}) == len(series)


def test_logarithmic_axis_has_a_tick_at_every_value():
    ax = plots.lines({"a": ([1, 2, 16], [1, 2, 3])}, "x", "y", log_x=True, log_y=True)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "16"]


def test_depth_goes_from_light_to_dark_and_a_bar_says_which():
    curves = [([1, 2], [depth, depth]) for depth in range(4)]
    ax = plots.by_depth(curves, "x", "y")
    greys = [sum(to_rgba(line.get_color())[:3]) for line in ax.get_lines()]
    assert all(before - after > 0.1 for before, after in pairwise(greys))
    for line, curve in zip(ax.get_lines(), curves, strict=True):
        draws(line, *curve)
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "boundary" and list(bar.get_yticks()) == [0, 1, 2, 3]


def test_a_standard_error_reaches_as_far_to_either_side():
    y, errors = [1.0, 2.0], [0.25, 0.5]
    lines = plots.lines({"a": ([0, 10], y, errors)}, "x", "y")
    for ax in (lines, plots.bars(["g", "h"], {"a": y}, "x", "y", errors={"a": errors})):
        (drawn,) = [collection for collection in ax.collections if len(collection.get_segments()) == 2]
        ends = [sorted(float(point[1]) for point in segment) for segment in drawn.get_segments()]
        assert ends == [[0.75, 1.25], [1.5, 2.5]]


def test_bars_are_as_high_as_the_data_and_side_by_side():
    heights = {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    ax = plots.bars(["g", "h"], heights, "x", "y", paper={"table 2": [1.5, math.nan]})
    assert [[bar.get_height() for bar in group] for group in ax.containers] == list(heights.values())
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for group in ax.containers for bar in group)
    assert all(left[1] <= right[0] + 1e-9 for left, right in pairwise(edges))
    hollow(ax.get_lines()[0])


def test_a_matrix_and_points_are_drawn_as_they_are():
    values = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    image = plots.matrix(values, "x", "y", "|entry|").get_images()[0]
    assert image.get_array().tolist() == values.tolist() and image.colorbar.ax.get_ylabel() == "|entry|"
    assert image.cmap(0.0)[:3] == (1.0, 1.0, 1.0) and image.cmap(1.0)[:3] == (0.0, 0.0, 0.0)
    clouds = {"before": values, "after": values + 1}
    drawn = plots.points(clouds, "x", "y").collections
    assert [cloud.get_offsets().tolist() for cloud in drawn] == [cloud.tolist() for cloud in clouds.values()]


@pytest.mark.parametrize("inner", [None, 7])
def test_a_cut_is_to_scale(inner):
    D, k, hidden, tokens, left = 6, 4, 9, 5, inner or 9
    drawn = pictures.cut(D, k, hidden, tokens, inner).patches
    shapes = [(patch.get_width(), patch.get_height()) for patch in drawn]
    assert shapes[::2] == [(D, tokens), (hidden, D), (D, hidden), (D, D)]  # X, W_in, W_out, S
    assert shapes[1::2] == [(k, tokens), (left, k), (k, left), (k, k)]
    assert [bool(patch.get_hatch()) for patch in drawn] == [True, False] * 4
    for sizes, says in (((6, 7, 9, 5), "can't keep 7 of 6"), ((6, 4, 9, 5, 10), "can't keep 10 of 9")):
        with pytest.raises(ValueError, match=says):
            pictures.cut(*sizes)


def test_the_architecture_has_its_parts_in_the_order_of_the_signal():
    words = {text.get_text(): text.get_position()[0] for text in pictures.architecture().texts if text.get_text()}
    order = ("$W_{embd}$", "boundary 0", "boundary 1", "boundary 2", "last boundary", "$W_{head}$", "logits")
    assert [words[word] for word in order] == sorted(words[word] for word in order)
    assert {"S", "norm", "$W_{in}$", "σ", "$W_{out}$", "one layer of the trained model"} < set(words)


def test_paper_tables_are_all_there_and_numbers_are_numbers():
    assert len({len(paper_table(number)) for number in range(1, 13)}) > 1
    rows = {(row["model"], row["slicing_percent"]): row for row in paper_table(8)}
    five = [rows["Phi-2", 30][task] for task in ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")]
    assert sum(five) / 5 == pytest.approx(59.232) and rows["Phi-2", 30]["average"] == 63.47  # the slip, as printed
    with pytest.raises(ValueError, match="no table 13"):
        paper_table(13)


@pytest.mark.parametrize("worst", [60.0, 6000.0])
def test_rows_at_equal_sizes_are_lines_over_their_parameters(worst):
    rows = [
        {"model": "mini", "variant": variant, "status": status, "parameters": size, "perplexity": y, "ratio_error": e}
        for variant, status, size, y, e in (
            ("dense", "done", 3_000_000, 30.0, 0.0),
            *(("b", "done", size, y, 0.1) for size, y in ((2_700_000, 40.0), (2_100_000, worst), (2_400_000, 50.0))),
            ("a", "done", 2_400_000, 35.0, 0.0),
            ("a", "failed", 300_000, None, None),
        )
    ]
    ax = plots.by_parameters(rows)
    drawn = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert list(drawn) == ["b", "a", "dense"], "in the rows' order"
    draws(drawn["b"], [2.1, 2.4, 2.7], [worst, 50.0, 40.0])
    draws(drawn["a"], [2.4], [35.0])
    assert set(drawn["dense"].get_ydata()) == {30.0}
    low, high = ax.collections[0].get_segments()[2][:, 1]
    assert (low, high) == pytest.approx((40.0 - 3.0, 40.0 + 3.0)), "one standard error of the ratio, in perplexity"
    ax.figure.canvas.draw()
    shown = [tick.get_text() for tick in ax.get_yticklabels() if ax.get_ylim()[0] <= tick.get_position()[1] <= worst]
    assert len(shown) >= 3 and ax.get_yscale() == "log" and not any("10^" in text for text in shown)
