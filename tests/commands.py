"""What every command promises: one JSON document, and one line for what can't be done. The fixture `run` runs one."""

import json

import pytest


def document(out: str):
    """The one JSON document that standard output is; NaN and Infinity are no JSON."""
    assert out.endswith("\n") and out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def assert_refused(result: tuple[int, str, str], *fragments: str) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr that has every fragment."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("minislice: ") and err.endswith("\n") and err.count("\n") == 1, err
    for fragment in fragments:
        assert fragment in err
