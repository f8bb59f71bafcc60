"""Every property can fail: each is run against a planted mistake, where it must, and without it, where it must not."""

import functools
import inspect
from pkgutil import resolve_name

import budget_properties
import depth_properties
import inner_properties
import properties
import pytest
from mistakes import TABLE, wrong

holds = functools.cache(lambda fact, recipe, options: fact(recipe, **dict(options)))
CASES = [
    pytest.param(fact, recipe, target, version, dict(*options), id=f"{fact.__name__}: {name}")
    for fact, mistakes in TABLE.items()
    for name, recipe, target, version, *options in mistakes
]


@pytest.mark.parametrize(("fact", "recipe", "target", "version", "options"), CASES)
def test_property_fails_with(fact, recipe, target, version, options, monkeypatch):
    holds(fact, recipe, tuple(options.items()))
    target = target if target.split(".")[0].endswith("properties") else f"minislice.{target}"
    monkeypatch.setattr(target, wrong(version)(resolve_name(target)))
    with pytest.raises(AssertionError):
        fact(recipe, **options)


def test_every_property_has_a_mistake_on_which_it_fails():
    for module in (properties, inner_properties, budget_properties, depth_properties):
        for name, fact in inspect.getmembers(module, inspect.isfunction):
            parameters, result = inspect.signature(fact).parameters, inspect.signature(fact).return_annotation
            if fact.__module__ == module.__name__ and next(iter(parameters)) == "recipe" and result is None:
                assert fact in TABLE, name
