"""Plain values as JSON, between the grader and the process that runs a student's code.

None, bool, int, float, str, list, dict with str keys, and NumPy's arrays and scalars: a dtype, a shape, and bytes in
base64. A tuple arrives as a list, a subclass as what it is a subclass of. No code is ever loaded. A message is a line.
Whoever reads gives up before it takes more than `CAP` bytes.

`child.py` loads this file from beside itself, without the package: it needs the standard library and NumPy alone.
"""

import base64
import json
from typing import Any, BinaryIO

import numpy as np

CAP = 1 << 20  # bytes of a message: the arrays of a case have a few thousand numbers in all


class WireError(Exception):
    """A value that doesn't cross, or bytes that aren't one."""


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
    """The bytes of a value; a WireError if it is not plain, or too large."""
    try:
        body = json.dumps(value, default=_plain).encode()
    except (TypeError, ValueError, RecursionError):  # also an integer of thousands of digits, endless lists
        raise WireError from None
    if len(body) >= CAP:  # a line's end is beyond it
        raise WireError
    return body


def decode(body: bytes) -> Any:
    """The value of some bytes; a WireError if they are not one value."""
    if len(body) > CAP:
        raise WireError
    try:
        return json.loads(body, object_hook=_restored)
    except Exception:  # a student's code may have written any bytes
        raise WireError from None


def _plain(value: Any) -> dict[str, list]:
    """What JSON has no form for: an array of numbers, or a TypeError."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "biufc":
        raise TypeError
    if value.nbytes > CAP:  # a view may repeat a few bytes: the copy would be large
        raise WireError
    return {"ndarray": [value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode()]}


def _restored(plain: dict[str, Any]) -> Any:
    if "ndarray" not in plain:
        return plain
    dtype, shape, data = plain["ndarray"]
    if np.dtype(dtype).kind not in "biufc" or len(shape) > 8 or max(shape, default=0) > CAP:
        raise WireError
    array = np.frombuffer(base64.b64decode(data), dtype).reshape(shape)
    if array.dtype.kind == "b":
        array = np.asarray(array.view(np.uint8) != 0)  # a bool of 2 is none
    return array.astype(array.dtype.newbyteorder("="))[()]  # a scalar if it has no sides
