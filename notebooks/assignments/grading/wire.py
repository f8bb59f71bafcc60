"""Plain values as bytes, between the grader and the process that runs a student's code.

None, bool, int, float, str, tuple, list, dict with str keys, NumPy arrays and NumPy scalars: a tag, then a length or a
shape, then the raw bytes. Nothing else is known, no code is ever loaded, and both sides count what they read. A message
is four bytes of length and that many bytes; the reader gives up before it allocates more than `CAP`.

This file is also loaded by `child.py` beside it, without the package: it needs the standard library and NumPy alone.
"""

import math
import os
import struct

import numpy as np

CAP = 4 << 20  # bytes of a message: the largest arrays of an assignment have a few thousand
VALUES = 10_000  # values in a message: an empty list takes five bytes here and fifty in memory
DEPTH = 16  # of lists in lists
DTYPES = ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16")

_SIZE = struct.Struct("<I")


class WireError(Exception):
    """A value that doesn't cross, or bytes that aren't one: the message says why."""


def send(descriptor: int, value: object) -> None:
    """Write one message.

    Raises:
        WireError: the value can't cross.
        OSError: nobody reads any more.
    """
    body = encode(value)
    message = memoryview(_SIZE.pack(len(body)) + body)
    while message:
        message = message[os.write(descriptor, message) :]


def receive(descriptor: int) -> object:
    """Read one message.

    Raises:
        WireError: the bytes are no message, or there are more than `CAP`.
        EOFError: the other side closed its end.
    """
    (size,) = _SIZE.unpack(_exactly(descriptor, _SIZE.size))
    if size > CAP:
        raise WireError(f"more than {CAP >> 20} MiB")
    return decode(_exactly(descriptor, size))


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value: object) -> bytes:
    """The bytes of a value.

    Raises:
        WireError: it is not plain, or too large; the message describes it.
    """
    parts: list[bytes] = []
    _encode(value, parts, 0)
    if sum(map(len, parts)) > CAP or len(parts) > VALUES:
        raise WireError(f"more than {CAP >> 20} MiB or {VALUES} values")
    return b"".join(parts)


def _encode(value: object, parts: list[bytes], depth: int) -> None:
    if depth > DEPTH:
        raise WireError(f"lists nested deeper than {DEPTH}")
    kind = type(value)  # not isinstance: what a subclass says about itself is not to be believed
    if value is None:
        parts.append(b"n")
    elif kind is bool:
        parts.append(b"T" if value else b"F")
    elif kind is int:
        if not -(1 << 63) <= value < 1 << 63:
            raise WireError("an integer of more than 64 bits")
        parts.append(b"i" + struct.pack("<q", value))
    elif kind is float:
        parts.append(b"d" + struct.pack("<d", value))
    elif kind is str:
        text = value.encode("utf-8", "replace")
        parts.append(b"s" + _SIZE.pack(len(text)) + text)
    elif kind is tuple or kind is list:
        parts.append((b"t" if kind is tuple else b"l") + _SIZE.pack(len(value)))
        for item in value:
            _encode(item, parts, depth + 1)
    elif kind is dict:
        parts.append(b"m" + _SIZE.pack(len(value)))
        for key, item in value.items():
            if type(key) is not str:
                raise WireError(f"a dictionary with a key of type {type(key).__name__}")
            _encode(key, parts, depth + 1)
            _encode(item, parts, depth + 1)
    elif kind is np.ndarray or isinstance(value, np.generic):
        parts.append(_encode_array(value))
    else:
        raise WireError(f"a value of type {kind.__name__}")


def _encode_array(value: "np.ndarray | np.generic") -> bytes:
    dtype = value.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise WireError(f"an array of dtype {value.dtype}")
    if value.nbytes > CAP:  # also for a view that repeats a few bytes: the copy would be large
        raise WireError(f"an array of {value.nbytes} bytes")
    tag = b"a" if type(value) is np.ndarray else b"g"
    head = bytes([DTYPES.index(dtype.str), value.ndim])
    sizes = b"".join(struct.pack("<q", n) for n in value.shape)
    return tag + head + sizes + value.astype(dtype).tobytes()


def decode(body: bytes) -> object:
    """The value of some bytes.

    Raises:
        WireError: they are not one value.
    """
    reader = _Reader(body)
    value = reader.value(0)
    if reader.at != len(body):
        raise WireError("bytes behind the value")
    return value


class _Reader:
    """Decodes a value from bytes; what it allocates is bounded by how many there are, and by `VALUES`."""

    def __init__(self, body: bytes):
        self.body, self.at, self.count = body, 0, 0

    def take(self, size: int) -> bytes:
        if size > len(self.body) - self.at:
            raise WireError("a length beyond the end")
        self.at += size
        return self.body[self.at - size : self.at]

    def size(self) -> int:
        return _SIZE.unpack(self.take(_SIZE.size))[0]

    def value(self, depth: int) -> object:
        self.count += 1
        if depth > DEPTH or self.count > VALUES:
            raise WireError("too many values, or nested too deep")
        tag = self.take(1)
        if tag in b"nTF":
            return {b"n": None, b"T": True, b"F": False}[tag]
        if tag == b"i":
            return struct.unpack("<q", self.take(8))[0]
        if tag == b"d":
            return struct.unpack("<d", self.take(8))[0]
        if tag == b"s":
            return self.text()
        if tag in b"tl":
            items = [self.value(depth + 1) for _ in range(self.size())]
            return tuple(items) if tag == b"t" else items
        if tag == b"m":
            return dict(self.item(depth) for _ in range(self.size()))
        if tag in b"ag":
            array = self.array()
            return array if tag == b"a" else array[()]
        raise WireError("an unknown kind of value")

    def text(self) -> str:
        return self.take(self.size()).decode("utf-8", "replace")

    def item(self, depth: int) -> tuple[str, object]:
        if self.take(1) != b"s":
            raise WireError("a dictionary with a key that is no text")
        return self.text(), self.value(depth + 1)

    def array(self) -> np.ndarray:
        which, ndim = self.take(2)
        if which >= len(DTYPES) or ndim > DEPTH:
            raise WireError("an array of an unknown kind")
        shape = struct.unpack(f"<{ndim}q", self.take(8 * ndim))
        if any(not 0 <= n <= CAP for n in shape):
            raise WireError("an array of an impossible shape")
        dtype = np.dtype(DTYPES[which])
        raw = np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype)
        if dtype.kind == "b":
            raw = raw.view(np.uint8) != 0  # a bool of 2 is none
        try:
            return raw.astype(dtype.newbyteorder("=")).reshape(shape)
        except ValueError:  # no entries, and sizes whose product NumPy can't count
            raise WireError("an array of an impossible shape") from None
