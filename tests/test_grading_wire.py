"""Values as JSON, between the grader and a student's process: what is sent arrives, and nothing else comes through."""

import contextlib
import io
import pickle

import numpy as np
import pytest
from grading import wire
from hypothesis import given, strategies

from minislice.teaching.assignments.forms import same

DTYPES = ("?", "i1", "<i8", "u1", "<f2", "<f4", "<f8", "<c16")
VALUES = [
    *(None, True, 2**63 - 1, -0.5, "text \u0000 \U0001f600", [], [1, [2.0, "x"]]),
    *({}, {"key": {"inner": [1, [2]]}}, np.float32(1.5), np.int64(3), np.bool_(True)),
    *(np.ones(shape, dtype) for dtype in DTYPES for shape in ((1,), (0, 3), (2, 3))),
]


class Subclass(np.ndarray):
    pass


def test_what_is_sent_arrives():
    for value in VALUES:
        assert same(wire.decode(wire.encode(value)), value)
    view = np.arange(6.0).reshape(2, 3).T[::2]
    for array in (view, view.astype(">f8"), view.view(Subclass)):
        assert same(wire.decode(wire.encode(array)), view)
    assert same(wire.decode(wire.encode(np.linalg.eigh(np.eye(2)))), [np.ones(2), np.eye(2)])


@given(strategies.sampled_from(range(len(VALUES))), strategies.data())
def test_what_is_damaged_is_an_error_or_another_value(index, data):
    body = bytearray(wire.encode(VALUES[index]))
    body[data.draw(strategies.integers(0, len(body) - 1))] = data.draw(strategies.integers(0, 255))
    with contextlib.suppress(wire.WireError):
        wire.decode(bytes(body[: data.draw(strategies.integers(0, len(body)))]))


def test_hostile_bytes_are_an_error():
    for body in (
        *(b"", b"x", b"1 2", b"[" * 90_000, b"1" * 5000, b'"' + b"x" * wire.CAP + b'"'),
        *(b'{"ndarray": 1}', b'{"ndarray": []}', b'{"ndarray": ["<f8", [9], "AAAA"]}', pickle.dumps([1])),
        b'{"ndarray": ["<f8", [0, 4194304, 4194304, 4194304], ""]}',
        *(b'{"ndarray": ["O", [1], "AAAAAAAAAAA="]}', b'{"ndarray": [["f8", "i8"], [], ""]}'),
    ):
        with pytest.raises(wire.WireError):
            wire.decode(body)
    for body, error in ((b"0" * (wire.CAP + 9), wire.WireError), (b'"abc', EOFError)):
        with pytest.raises(error):  # it gives up before it reads more than the cap
            wire.receive(io.BytesIO(body))


def test_what_is_not_plain_is_not_sent():
    for value in (
        *(object(), {(1,): 2}, {1, 2}, b"bytes", 10**5000, [0] * 400_000, "x" * (5 << 20)),
        *(np.zeros(2, dtype) for dtype in ("O", "U3", "M8[s]", "f8,i8")),
        *(np.broadcast_to(np.zeros(1), (1 << 20,)), (ring := []).append(ring) or ring),
    ):
        with pytest.raises(wire.WireError):
            wire.encode(value)
