"""Run one call of a student's function in a process that can do nothing else, and take what it says as a claim.

A new process for each call, killed when it has answered or when a limit is reached: nothing is left from one call to
the next. Starting Python and NumPy takes about a tenth of a second; a process kept warm, to fork for each call, would
be quicker and would have to be protected from its children.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import wire
from .isolation import NOBODY

CHILD = Path(__file__).parent / "child.py"
PACKAGES = Path(np.__file__).parents[1]
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment: what Python may need to start
LARGEST = 1024  # length of an array's side, in a question to a candidate: it is answered in the grader's process


@dataclass(frozen=True)
class Limits:
    """What one call may take: bytes of memory, seconds of processor time, seconds by the clock."""

    memory: int = 2 << 30
    cpu: int = 10
    wall: int = 60  # much more than cpu: a busy machine is no reason for a student to lose points


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


@dataclass
class Sandbox:
    """Where students' functions are called.

    Args:
        isolated: in namespaces of its own; `holes` says what is possible all the same.
        refused: the system's reason, where it doesn't allow namespaces.
    """

    limits: Limits = field(default_factory=Limits)
    isolated: bool = True
    refused: str = ""
    holes: tuple[str, ...] = ()

    @classmethod
    def best(cls, limits: Limits, hidden: Sequence[Path], isolated: bool = True) -> "Sandbox":
        """The best that this computer allows, tried out.

        Args:
            hidden: files and folders that a student's code must not see.
            isolated: try namespaces at all.
        """
        sandbox = cls(limits, isolated)
        try:
            sandbox.holes = sandbox._probe(hidden)
        except OSError as error:
            if not isolated:
                raise ValueError(f"a process for the students' code can't be started: {error}") from None
            sandbox = cls.best(limits, hidden, isolated=False)
            sandbox.refused = str(error)
        return sandbox

    def call(
        self,
        cells: Sequence[tuple[str, str]],
        function: str,
        arguments: Sequence[Any] = (),
        candidate: Callable[..., Any] | None = None,
        seed: int | None = None,
    ) -> Answer:
        """Execute cells, the last of which must succeed, and call a function that they define.

        Args:
            cells: names and sources.
            candidate: call the function with this instead of arguments, and with a random generator of this seed. It is
                computed here, and only questions to it and its answers cross.

        Raises:
            OSError: the process can't be set up as asked, before it saw anything of the student's.
        """
        request = {"cells": list(cells), "function": function, "arguments": list(arguments), "seed": seed}
        with tempfile.TemporaryDirectory(prefix="minislice-", ignore_cleanup_errors=True) as folder:
            if hasattr(os, "geteuid") and os.geteuid() == 0:
                with contextlib.suppress(OSError):  # see isolation: nobody may not exist
                    os.chown(folder, NOBODY, NOBODY)
            with self._process(folder) as process:
                return _converse(process, request, candidate)

    @contextlib.contextmanager
    def _process(self, folder: str):
        settings = (PACKAGES, folder, self.isolated, self.limits.memory, self.limits.cpu, self.limits.wall + 10)
        started = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), *map(str, settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            | {name: os.environ[name] for name in KEPT if name in os.environ},
            start_new_session=True,
        )
        process = _Process(started, self.isolated, self.limits)
        clock = threading.Timer(self.limits.wall, process.kill)
        clock.start()
        try:
            yield process
        finally:
            clock.cancel()
            process.kill()
            for pipe in (started.stdin, started.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()

    def _probe(self, hidden: Sequence[Path]) -> tuple[str, ...]:
        """What a submission could do here, tried by a function in a submission's place."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            arguments = [[str(path) for path in hidden], server.getsockname()[1], 2 * self.limits.memory]
            answer = self.call([("probe", _PROBE)], "probe", arguments)
        if answer.kind != "returned":
            raise ValueError(f"a process for the students' code doesn't work here: {answer}")
        names = ("read your files", "use the network", "start processes", "take all memory")
        return tuple(name for name, possible in zip(names, answer.result, strict=True) if possible)


_PROBE = """
import os, socket
import numpy as np

def tried(action):
    try:
        return bool(action())
    except (OSError, AttributeError, MemoryError):
        return False

def fork():
    if os.fork() == 0:
        os._exit(0)
    return True

def probe(hidden, port, memory):
    return [
        any(os.access(path, os.R_OK) for path in hidden),
        tried(lambda: socket.socket().connect(("127.0.0.1", port)) is None),
        tried(fork),
        tried(lambda: np.empty(memory, np.uint8).size),
    ]
"""


class _Process:
    """A started process: how it is killed, and why it ended."""

    def __init__(self, started: subprocess.Popen, isolated: bool, limits: Limits):
        self.started, self.isolated, self.limits = started, isolated, limits
        self.since = time.monotonic()

    def send(self, value: Any) -> None:
        wire.send(self.started.stdin.fileno(), value)

    def receive(self) -> Any:
        return wire.receive(self.started.stdout.fileno())

    def kill(self) -> None:
        """Kill it, and whatever it started; no harm if it has ended."""
        if self.isolated:  # what we started is the one outside, which kills the one inside
            self.started.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.started.wait(5)
                return
        if hasattr(os, "killpg") and self.started.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.started.pid, signal.SIGKILL)
        self.started.kill()
        self.started.wait()

    def why(self) -> str:
        """Why it ended without an answer, in words for the student."""
        lasted = time.monotonic() - self.since
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.started.wait(1)  # a moment passes between the last of the pipe and the end
        status = self.started.returncode or 0
        killed = status in (-9, 128 + 9)  # SIGKILL, from ourselves or from the process outside the namespaces
        if lasted >= self.limits.wall:
            return f"stopped: it took more than {self.limits.wall} s"
        if killed and lasted >= self.limits.cpu:
            return f"stopped: it took more than {self.limits.cpu} s of processor time"
        if status < 0 or status > 128:
            return "stopped: the process crashed"
        return "stopped: the process ended before the function returned"


def _converse(process: _Process, request: dict, candidate: Callable[..., Any] | None) -> Answer:
    executed = False
    try:
        ready = process.receive()
        if ready is not True:
            raise OSError(ready)
        with contextlib.suppress(BrokenPipeError):
            process.send(request)
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
    """The answer to a student's question to a candidate; all that goes wrong is the question's fault."""
    try:
        if max((size for array in _arrays(arguments) for size in array.shape), default=0) > LARGEST:
            raise ValueError(f"ask about arrays with sides of at most {LARGEST}")
        with np.errstate(all="ignore"):
            result = candidate(*arguments)
        answer = ("returned", result)
        wire.encode(answer)
        return answer
    except Exception as error:
        return ("raised", type(error).__name__, str(error)[:200])


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, (tuple, list)):
        return [array for item in value for array in _arrays(item)]
    if isinstance(value, dict):
        return _arrays(list(value.values()))
    return [value] if isinstance(value, np.ndarray) else []
