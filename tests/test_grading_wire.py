"""Values as bytes, between the grader and a student's process: what is sent arrives, and nothing else comes through."""

import contextlib
import os
import pickle

import numpy as np
import pytest
from grading import wire
from hypothesis import given, strategies
from hypothesis.extra.numpy import arrays

from minislice.teaching.assignments.forms import same

PLAIN = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-(2**63), 2**63 - 1)
    | strategies.floats(allow_nan=False)
    | strategies.text()
    | arrays(
        strategies.sampled_from([np.dtype(d) for d in wire.DTYPES]), strategies.sampled_from([(), (0, 3), (2, 3)])
    ),
    lambda inner: (
        strategies.lists(inner, max_size=4)
        | strategies.lists(inner, max_size=4).map(tuple)
        | strategies.dictionaries(strategies.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_what_is_sent_arrives(value):
    assert same(wire.decode(wire.encode(value)), value)


def test_numpy_scalars_and_views_arrive():
    for value in (np.float32(1.5), np.int64(3), np.bool_(True)):
        assert type(wire.decode(wire.encode(value))) is type(value)
    matrix = np.arange(6.0).reshape(2, 3)
    for view in (matrix.T, matrix[:, ::2], matrix.astype(">f8")):
        assert np.array_equal(wire.decode(wire.encode(view)), view)


@given(PLAIN, strategies.data())
def test_bytes_that_are_no_value_are_an_error_and_nothing_else(value, data):
    body = bytearray(wire.encode(value))
    for _ in range(data.draw(strategies.integers(1, 4))):
        body[data.draw(strategies.integers(0, len(body) - 1))] = data.draw(strategies.integers(0, 255))
    with contextlib.suppress(wire.WireError):
        wire.decode(bytes(body[: data.draw(strategies.integers(0, len(body)))]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"nn",
        b"s\xff\xff\xff\xff",
        b"l\xff\xff\xff\xff" + b"n" * 20_000,
        b"l\x01\x00\x00\x00" * 100 + b"n",
        b"m\x01\x00\x00\x00nn",
        b"a\x0b\x01" + b"\xff" * 8,
        b"a\x0b\x04" + (0).to_bytes(8, "little") + (4 << 20).to_bytes(8, "little") * 3,
        b"a\x63\x00",
        pickle.dumps([1]),
    ],
)
def test_hostile_bytes_are_an_error(body):
    with pytest.raises(wire.WireError):
        wire.decode(body)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1: 2},
        {1, 2},
        b"bytes",
        2**64,
        np.zeros(2, dtype=object),
        np.zeros(2, dtype="U3"),
        np.zeros(2, dtype=np.longdouble),
        np.matrix([[1.0]]),
        np.broadcast_to(np.zeros(1), (1 << 20,)),
        [0] * 20_000,
        "x" * (5 << 20),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_is_not_sent(value):
    with pytest.raises(wire.WireError):
        wire.encode(value)


def test_the_reader_gives_up_before_it_reads_more_than_the_cap():
    reads, writes = os.pipe()
    os.write(writes, (wire.CAP + 1).to_bytes(4, "little"))
    with pytest.raises(wire.WireError, match="more than 4 MiB"):
        wire.receive(reads)
    os.write(writes, b"\x08\x00\x00\x00abc")
    os.close(writes)
    with pytest.raises(EOFError):
        wire.receive(reads)
    os.close(reads)
