"""`verify` measures what the other tests assert, on the user's own model."""

import gc
import weakref
from pkgutil import resolve_name

import mistakes
import properties
import pytest
import torch
from models import Recipe

from minislice.invariance import STEPS, TOLERANCES, relative_error, verify


@pytest.mark.parametrize(("family", "padding"), [("opt", "left"), ("llama", "none")])
def test_every_step_passes_in_every_dtype_and_leaves_the_model_alone(family, padding):
    recipe = Recipe(family, padding=padding)
    model = recipe.model()
    result = verify(model, recipe.tokens(), recipe.mask())
    assert {(m.dtype, m.step) for m in result.measurements} == {(d, s) for d in TOLERANCES for s in STEPS}
    assert result.passed and "has the invariance" in str(result), str(result)
    properties.assert_same_logits(model, recipe.model(), recipe, 0.0)


def test_a_wrong_rotation_fails_at_the_steps_that_rotate(monkeypatch):
    right = resolve_name("minislice.rotation.fold_reader")
    monkeypatch.setattr("minislice.rotation.fold_reader", mistakes.transposed(right))
    result = verify(Recipe("llama").model(), Recipe("llama").tokens(), dtypes=["float64"])
    assert {m.step for m in result.measurements if not m.passed} == {"rotated", "rotated per block"}
    assert not result.passed and "does NOT have" in str(result)


def test_relative_error_is_the_largest_difference_over_the_largest_logit():
    reference = [torch.tensor([[1.0, -4.0]]), torch.tensor([[2.0, 0.0]])]
    assert relative_error([reference[0] + 0.5, reference[1] - 1.0], reference) == 0.25
    assert relative_error(reference, reference) == 0.0


@pytest.mark.parametrize("let_go", [True, False])
def test_every_copy_is_let_go_at_once(let_go, monkeypatch):
    """Without waiting for Python's garbage collection; and not where a copy keeps its `save_pretrained`."""
    seen = []

    def watched(step):
        return lambda model, *rest: [seen.append(weakref.ref(model)), step(model, *rest)][1]

    monkeypatch.setattr("minislice.invariance.STEPS", {name: watched(step) for name, step in STEPS.items()})
    if not let_go:
        monkeypatch.setattr("minislice.invariance._let_go", lambda model: None)
    gc.disable()
    try:
        verify(Recipe("opt").model(), Recipe("opt").tokens(), dtypes=["float64"])
        assert len(seen) == len(STEPS) and any(model() is not None for model in seen) != let_go
    finally:
        gc.enable()
