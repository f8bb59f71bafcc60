"""A slider's figure follows its value, and where nobody can drag, one static figure is drawn."""

import sys

import pytest
import torch

import minislice
from minislice.measuring.paired import Ratio
from minislice.teaching import sliders
from minislice.teaching.small import small_model

pytestmark = pytest.mark.usefixtures("figures")


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
    model = minislice.fuse(small_model("llama"))
    left, right = sliders.turn(model, torch.arange(16).view(2, 8))(30)
    trained, turned = (torch.tensor(cloud.get_offsets().tolist()) for cloud in left.collections)
    assert torch.allclose(trained.norm(dim=1), turned.norm(dim=1), rtol=1e-5)
    assert not torch.allclose(trained, turned, atol=0.1)
    dense, rotated = (torch.tensor(line.get_ydata()) for line in right.lines)
    assert torch.allclose(dense, rotated, atol=1e-10)


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


def test_the_marked_points_are_those_of_the_share_that_is_deleted():
    sizes = {"full": {0.1: (90, 1.1), 0.3: (70, 1.5)}, "none": {0.1: (80, 1.2), 0.3: (60, 1.9)}}
    measured = {form: {s: (n, Ratio(r, 0.1)) for s, (n, r) in line.items()} for form, line in sizes.items()}
    ax = sliders.cutting(measured)(0.3)
    marked = [(line.get_xdata()[0] * 1e6, line.get_ydata()[0]) for line in ax.lines if line.get_markersize() == 12]
    assert marked == [(pytest.approx(70), 1.5), (pytest.approx(60), 1.9)]
