"""Every property can fail: each is run against a planted mistake, where it must, and without it, where it must not."""

import functools
import inspect
from pkgutil import resolve_name

import adapter_properties
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
    place, _, name = target.rpartition(".")
    monkeypatch.setattr(resolve_name(place), name, wrong(mistake.version)(resolve_name(target)))
    with pytest.raises(AssertionError) as failure:
        mistake.fact(mistake.recipe, **mistake.options)
    (line,) = (str(entry.statement) for entry in failure.traceback if entry.name == mistake.fact.__name__)
    assert mistake.claim in line


def test_a_property_with_several_claims_has_the_one_named_that_a_mistake_breaks():
    for mistake in MISTAKES:
        claims = [line for line in inspect.getsource(mistake.fact).splitlines() if line.strip().startswith("assert")]
        assert len(claims) <= 1 or any(mistake.claim in line for line in claims if mistake.claim), mistake.name


def test_every_property_has_a_mistake_on_which_it_fails():
    for module in (properties, adapter_properties, inner_properties, budget_properties, depth_properties):
        for name, fact in inspect.getmembers(module, inspect.isfunction):
            parameters, result = inspect.signature(fact).parameters, inspect.signature(fact).return_annotation
            if fact.__module__ == module.__name__ and next(iter(parameters)) == "recipe" and result is None:
                assert fact in TABLE, name
