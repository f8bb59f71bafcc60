"""Values as JSON, between the grader and a student's process: what is sent arrives, and nothing else comes through."""

import contextlib
import io
import pickle

import numpy as np
import pytest
from grading import wire
from hypothesis import given, strategies
from hypothesis.extra.numpy import arrays

from minislice.teaching.assignments.forms import same

DTYPES = [np.dtype(name) for name in ("?", "i1", "<i8", ">i4", "u1", "<f2", "<f4", ">f8", "<f8", "<c8", "<c16")]
PLAIN = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63 - 1)
    | strategies.floats(allow_nan=False)
    | strategies.text()
    | arrays(strategies.sampled_from(DTYPES), strategies.sampled_from([(), (0, 3), (2, 3)])),
    lambda inner: (
        strategies.lists(inner, max_size=4)
        | strategies.lists(inner, max_size=4).map(tuple)
        | strategies.dictionaries(strategies.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_what_is_sent_arrives(value):
    assert same(wire.decode(wire.encode(value)), native(value))


def native(value):
    """In the byte order of this machine, as what arrives is."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("="))
    if isinstance(value, (list, tuple)):
        return type(value)(map(native, value))
    return {key: native(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_numpy_scalars_and_views_arrive():
    for value in (np.float32(1.5), np.int64(3), np.bool_(True)):
        assert type(wire.decode(wire.encode(value))) is type(value)
    matrix = np.arange(6.0).reshape(2, 3)
    for view in (matrix.T, matrix[:, ::2]):
        assert np.array_equal(wire.decode(wire.encode(view)), view)


@given(PLAIN, strategies.data())
def test_bytes_that_are_no_value_are_an_error_and_nothing_else(value, data):
    body = bytearray(wire.encode(value))
    for _ in range(data.draw(strategies.integers(1, 4))):
        body[data.draw(strategies.integers(0, len(body) - 1))] = data.draw(strategies.integers(0, 255))
    with contextlib.suppress(wire.WireError):
        wire.decode(bytes(body[: data.draw(strategies.integers(0, len(body)))]))


HOSTILE = [
    *(b"", b"x", b"1 2", b"[" * 90_000, b"[" + b"0," * 200_000 + b"0]", b"1" * 5000, b'"' + b"x" * wire.CAP + b'"'),
    *(b"{}", b'{"list": []}', b'{"array": 1, "tuple": []}', b'{"tuple": 1}', b'{"array": ["<f8", [9], "AAAA"]}'),
    b'{"array": ["<f8", [0, 4194304, 4194304, 4194304], ""]}',
    *(b'{"array": ["O", [1], "AAAAAAAAAAA="]}', b'{"array": [["f8", "i8"], [], ""]}', pickle.dumps([1])),
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: str(body[:30]))
def test_hostile_bytes_are_an_error(body):
    with pytest.raises(wire.WireError):
        wire.decode(body)


NOT_PLAIN = [object(), {1: 2}, {1, 2}, b"bytes", 10**5000, np.matrix([[1.0]]), [0] * 200_000, "x" * (5 << 20)]
NOT_PLAIN += [np.zeros(2, dtype) for dtype in ("O", "U3", "M8[s]", "f8,i8")]
NOT_PLAIN += [np.broadcast_to(np.zeros(1), (1 << 20,)), (ring := []).append(ring) or ring]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_what_is_not_plain_is_not_sent(value):
    with pytest.raises(wire.WireError):
        wire.encode(value)


def test_the_reader_gives_up_before_it_reads_more_than_the_cap():
    for body, error in ((b"0" * (wire.CAP + 9), wire.WireError), (b'"abc', EOFError), (b"", EOFError)):
        with pytest.raises(error):
            wire.receive(io.BytesIO(body))
