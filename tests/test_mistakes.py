"""Every property can fail: each is run against a planted mistake, where it must, and without it, where it must not."""

import functools
import inspect
from pkgutil import resolve_name

import budget_properties
import depth_properties
import inner_properties
import properties
import pytest
from mistakes import MISTAKES, TABLE, wrong

holds = functools.cache(lambda fact, recipe, options: fact(recipe, **dict(options)))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.fact.__name__}: {mistake.name}")
def test_property_fails_with(mistake, monkeypatch):
    holds(mistake.fact, mistake.recipe, tuple(mistake.options.items()))
    target = mistake.target if mistake.target.split(".")[0].endswith("properties") else f"minislice.{mistake.target}"
    monkeypatch.setattr(target, wrong(mistake.version)(resolve_name(target)))
    with pytest.raises(AssertionError):
        mistake.fact(mistake.recipe, **mistake.options)


def test_every_property_has_a_mistake_on_which_it_fails():
    for module in (properties, inner_properties, budget_properties, depth_properties):
        for name, fact in inspect.getmembers(module, inspect.isfunction):
            parameters, result = inspect.signature(fact).parameters, inspect.signature(fact).return_annotation
            if fact.__module__ == module.__name__ and next(iter(parameters)) == "recipe" and result is None:
                assert fact in TABLE, name
