"""Plain values as JSON, between the grader and the process that runs a student's code.

None, bool, int, float, str, list, tuple, dict with str keys, NumPy arrays and NumPy scalars. An array is its dtype, its
shape and its bytes in base64; no code is ever loaded. A message is a line. Whoever reads gives up before it takes more
than `CAP` bytes or `VALUES` values.

`child.py` loads this file from beside itself, without the package: it needs the standard library and NumPy alone.
"""

import base64
import json
from typing import Any, BinaryIO

import numpy as np

CAP = 4 << 20  # bytes of a message: the largest arrays of an assignment have a few thousand
VALUES = 100_000  # values in a message: an empty list takes three bytes here and fifty in memory


class WireError(Exception):
    """A value that doesn't cross, or bytes that aren't one: the message says why."""


def send(stream: BinaryIO, value: Any) -> None:
    """Write one message; a WireError if the value can't cross, an OSError if nobody reads any more."""
    stream.write(encode(value) + b"\n")
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message; a WireError if it is none or too long, an EOFError if the other side closed its end."""
    line = stream.readline(CAP + 1)
    if not line.endswith(b"\n") and len(line) <= CAP:
        raise EOFError
    return decode(line)


def encode(value: Any) -> bytes:
    """The bytes of a value; a WireError that describes it if it is not plain, or too large."""
    try:
        body = json.dumps(_plain(value)).encode()
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, lists in lists without end
        raise WireError(str(error)) from None
    _require_small(body + b"\n")
    return body


def decode(body: bytes) -> Any:
    """The value of some bytes; a WireError if they are not one value."""
    _require_small(body)
    try:
        return _value(json.loads(body))
    except Exception as error:  # a student's code may have written any bytes
        raise WireError(f"no message: {error}") from None


def _require_small(body: bytes) -> None:
    """It counts at least all values of a message; commas and brackets in a text count as well."""
    if len(body) > CAP or sum(map(body.count, (b",", b"[", b"{"))) > VALUES:
        raise WireError(f"more than {CAP >> 20} MiB or {VALUES} values")


def _plain(value: Any) -> Any:
    kind = type(value)  # not isinstance: what a subclass says about itself is not to be believed
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is tuple:
        return {"tuple": [_plain(item) for item in value]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: _plain(item) for key, item in value.items()}}
    if kind is not np.ndarray and not isinstance(value, np.generic):
        raise WireError(f"a value of type {kind.__name__}")
    if value.dtype.kind not in "biufc" or value.nbytes > CAP:  # a view may repeat a few bytes: the copy would be large
        raise WireError(f"an array of dtype {value.dtype} with {value.nbytes} bytes")
    data = base64.b64encode(value.tobytes()).decode()
    return {"array" if kind is np.ndarray else "scalar": [value.dtype.str, value.shape, data]}


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tuple":
        return tuple(_value(item) for item in content)
    if kind == "dict":
        return {key: _value(item) for key, item in content.items()}
    array = _array(*content)
    return {"array": array, "scalar": array[()]}[kind]


def _array(dtype: str, shape: list[int], data: str) -> np.ndarray:
    if np.dtype(dtype).kind not in "biufc" or len(shape) > 8 or max(shape, default=0) > CAP:
        raise ValueError("an array of another dtype than numbers, or of an impossible shape")
    array = np.frombuffer(base64.b64decode(data), dtype).reshape(shape)
    if array.dtype.kind == "b":
        array = np.asarray(array.view(np.uint8) != 0)  # a bool of 2 is none
    return array.astype(array.dtype.newbyteorder("="))
