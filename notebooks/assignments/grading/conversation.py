"""What is said to the process that runs a student's code, and what is understood of its answers: see `child`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import wire
from .process import Process


@dataclass(frozen=True)
class Answer:
    """What came back from a call.

    Args:
        kind: "returned" (with `result`, and the arguments `after` it), "raised" (an exception of type `name` in `line`
            of the last cell, 0 where there is none), "missing" (no such function), "unsendable" (a result that is not
            plain) or "stopped" (by a limit, or by itself: `why`).
        executed: the cells got to their end.
    """

    kind: str
    executed: bool = False
    result: Any = None
    after: Sequence[Any] = ()
    name: str = ""
    line: int = 0
    why: str = ""


def converse(process: Process, request: dict, candidate: Callable[..., Any] | None) -> Answer:
    """Hand a request over and listen until there is an answer.

    Raises:
        OSError: the process could not be set up, before it saw anything of the student's.
    """
    try:
        ready = process.receive()
    except (EOFError, wire.WireError):
        ready = "it ended before it was ready"
    if ready is not True:
        raise OSError(f"a process for students' code can't be started: {ready}")
    try:
        process.send(request)
    except wire.WireError:
        return Answer("stopped", why="the cells are too large")
    except BrokenPipeError:
        return Answer("stopped", why=process.why())
    executed = False
    try:
        while True:
            message = process.receive()
            if _is(message, "executed") and not executed:
                executed = True
            elif candidate and _is(message, "call", tuple):
                process.send(_asked(candidate, message[1]))
            else:
                return _answer(message, executed)
    except (EOFError, BrokenPipeError):
        return Answer("stopped", executed, why=process.why())
    except wire.WireError:
        return _FORGED


_FORGED = Answer("stopped", True, why="stopped: it wrote to the pipe for the result what is no result")


def _answer(message: Any, executed: bool) -> Answer:
    if _is(message, "returned", object, list):
        return Answer("returned", executed, result=message[1], after=message[2])
    if _is(message, "raised", str, int):
        return Answer("raised", executed, name=message[1], line=message[2])
    if _is(message, "missing"):
        return Answer("missing", executed)
    if _is(message, "unsendable", str):
        return Answer("unsendable", executed)
    return _FORGED


def _is(message: Any, kind: str, *types: type) -> bool:
    """The message is a tuple of this kind, with values of these types."""
    return (
        type(message) is tuple
        and len(message) == 1 + len(types)
        and type(message[0]) is str
        and message[0] == kind
        and all(isinstance(value, wanted) for value, wanted in zip(message[1:], types, strict=True))
    )


def _asked(candidate: Callable[..., Any], arguments: tuple) -> tuple:
    """The answer to a student's question to a candidate; all that goes wrong is the question's fault.

    An exception crosses without its message: that could name the candidate ("fuse_block() missing 6 ...").
    """
    try:
        with np.errstate(all="ignore"):
            answer = ("returned", candidate(*arguments))
        wire.encode(answer)
        return answer
    except Exception as error:
        return ("raised", type(error).__name__)
