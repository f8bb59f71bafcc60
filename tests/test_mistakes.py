"""Every property can fail: each is run against a planted mistake, where it must, and without it, where it must not."""

import functools
import inspect
from collections.abc import Callable
from pkgutil import resolve_name

import adapter_properties
import budget_properties
import depth_properties
import inner_properties
import properties
import pytest
from mistakes import MISTAKES


def facts(module) -> dict[str, Callable]:
    """The properties a module defines: what takes a recipe and returns nothing."""
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and next(iter(inspect.signature(function).parameters)) == "recipe"
        and inspect.signature(function).return_annotation is None
    }


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_property_fails_on(mistake, monkeypatch):
    holds(mistake.fact, mistake.recipe, **mistake.options)
    place, _, name = mistake.target.rpartition(".")
    monkeypatch.setattr(resolve_name(place), name, mistake.version(resolve_name(mistake.target)))
    with pytest.raises(AssertionError) as failure:
        mistake.fact(mistake.recipe, **mistake.options)
    assert mistake.claim in failed_claim(failure.traceback, mistake.fact)


@functools.cache
def holds(fact: Callable, recipe, **options) -> None:
    fact(recipe, **options)


def failed_claim(traceback, fact: Callable) -> str:
    """The line of the property itself that failed."""
    (line,) = (str(entry.statement).strip() for entry in traceback if entry.name == fact.__name__)
    return line


def test_a_property_with_several_claims_has_the_one_named_that_a_mistake_breaks():
    for mistake in MISTAKES:
        claims = [line for line in inspect.getsource(mistake.fact).splitlines() if line.strip().startswith("assert")]
        assert len(claims) <= 1 or any(mistake.claim in line for line in claims if mistake.claim), mistake.name


def test_every_property_has_a_mistake_on_which_it_fails():
    tested = {mistake.fact for mistake in MISTAKES}
    modules = (properties, adapter_properties, inner_properties, budget_properties, depth_properties)
    every = [fact for module in modules for fact in facts(module).items()]
    assert [name for name, fact in every if fact not in tested] == []
