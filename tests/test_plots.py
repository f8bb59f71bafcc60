"""A figure shows the data that it was given, with labels on both axes; the paper's values look like the paper's."""

import math
import sys
from itertools import pairwise

import pytest
import torch

import minislice
from minislice.measuring.paired import Ratio
from minislice.teaching import pictures, plots, sliders
from minislice.teaching.small import small_model

pytestmark = pytest.mark.usefixtures("figures")
MEASURED = {"ours": ([0, 10, 20], [1.0, 1.5, 2.5]), "other": (torch.arange(3), torch.tensor([2.0, 1.0, 0.5]))}
PAPER = {"OPT-125M": ([0, 20], [1.0, 1.25])}


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
    with pytest.raises(ValueError, match="both axes"):
        FIGURES[name]("slicing (%)", "")


def test_lines_draw_the_data_and_the_papers_hollow():
    ax = plots.lines(MEASURED, "x", "y", paper=PAPER)
    ours, other, paper = ax.get_lines()
    draws(ours, *MEASURED["ours"])
    draws(other, *MEASURED["other"])
    draws(paper, *PAPER["OPT-125M"])
    hollow(paper)
    assert "none" not in [line.get_markerfacecolor() for line in (ours, other)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours", "other", "paper: OPT-125M"]


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


def test_a_cut_is_to_scale():
    D, k, hidden, tokens, left = 6, 4, 9, 5, 7
    drawn = pictures.cut(D, k, hidden, tokens, left).patches
    shapes = [(patch.get_width(), patch.get_height()) for patch in drawn]
    assert shapes[::2] == [(D, tokens), (hidden, D), (D, hidden), (D, D)]  # X, W_in, W_out, S
    assert shapes[1::2] == [(k, tokens), (left, k), (k, left), (k, k)]
    with pytest.raises(ValueError, match="can't keep 7 of 6"):
        pictures.cut(6, 7, 9, 5)


def test_rows_at_equal_sizes_are_lines_over_their_parameters():
    names = ("variant", "status", "parameters", "perplexity", "ratio_error")
    rows = [
        ("dense", "done", 3_000_000, 30.0, 0.0),
        ("b", "done", 2_700_000, 40.0, 0.1),
        ("b", "done", 2_100_000, 6000.0, 0.1),
        ("a", "done", 2_400_000, 35.0, 0.0),
        ("a", "failed", 300_000, None, None),
    ]
    ax = plots.by_parameters([{"model": "mini", **dict(zip(names, row, strict=True))} for row in rows])
    drawn = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert list(drawn) == ["b", "a", "dense"], "in the rows' order"
    draws(drawn["b"], [2.1, 2.7], [6000.0, 40.0])
    draws(drawn["a"], [2.4], [35.0])
    assert set(drawn["dense"].get_ydata()) == {30.0}
    low, high = ax.collections[0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx((40.0 - 3.0, 40.0 + 3.0)), "one standard error of the ratio, in perplexity"


def test_the_first_value_is_drawn_once_and_in_jupyter_what_the_slider_is_dragged_to(monkeypatch):
    for name in sliders.FRONT_ENDS:
        monkeypatch.delenv(name, raising=False)
    made, drawn = [], []
    sliders.slide(drawn.append, [1, 2, 3], 2, "k")
    assert drawn == [2]
    ipywidgets = pytest.importorskip("ipywidgets", reason="comes with Jupyter")
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ipywidgets", None)  # as where it isn't installed
        sliders.slide(drawn.append, [1, 2, 3], 1, "k")
    assert drawn.pop() == 1
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, value: made.append((draw, value)))
    sliders.slide(drawn.append, [1, 2, 3], 2, "k")
    (draw, slider) = made[0]
    assert (slider.value, slider.options) == (2, (1, 2, 3)) and not slider.continuous_update
    draw(3)
    assert drawn == [2, 3]


def test_turning_two_dimensions_moves_their_weights_and_no_logit():
    left, right = sliders.turn(minislice.fuse(small_model("llama")), torch.arange(16).view(2, 8))(30)
    trained, turned = (torch.tensor(cloud.get_offsets().tolist()) for cloud in left.collections)
    assert torch.allclose(trained.norm(dim=1), turned.norm(dim=1), rtol=1e-5)
    assert not torch.allclose(trained, turned, atol=0.1)
    draws(right.lines[1], *right.lines[0].get_data())


def test_the_marked_points_are_those_of_the_share_that_is_deleted():
    full, none = {0.1: (90, Ratio(1.1, 0.1)), 0.3: (70, Ratio(1.5, 0.1))}, {0.3: (60, Ratio(1.9, 0.1))}
    *_, first, second = sliders.cutting({"full": full, "none": none})(0.3).lines
    draws(first, [70e-6], [1.5])
    draws(second, [60e-6], [1.9])


def test_the_spectrum_is_split_at_k_and_each_width_is_measured_once():
    measured = []
    cost = lambda k: measured.append(k) or Ratio(4 / k, 0.25)  # noqa: E731
    draw = sliders.columns(torch.tensor([8.0, 4.0, 2.0, 2.0]).double(), cost)
    for k in (2, 2, 3):
        axes = draw(k)
        assert [len(line.get_xdata()) for line in axes[0].lines] == [k, 4 - k]
    assert measured == [2, 3]
    assert "25.00%" in draw(2)[0].get_title() and "2.00" in draw(2)[1].get_title()


def test_an_aligned_adapter_differs_from_the_identity_in_one_direction():
    for degrees in (0, 30, 80):
        axes = sliders.tilt(degrees)
        came, aligned = (torch.tensor([float(t.get_text()) for t in ax.texts]).view(2, 2) for ax in axes)
        cosines = torch.tensor([1.0, torch.tensor(degrees).deg2rad().cos()])
        assert torch.allclose(torch.linalg.svdvals(came), cosines, atol=0.02)
        assert not torch.allclose(came, came.T, atol=0.1) and torch.equal(aligned, aligned.T)
        assert torch.allclose(torch.linalg.eigvalsh(aligned).flip(0), cosines, atol=0.02)
