"""Run one call of a student's function in a process that can do nothing else, and take what it says as a claim.

A new process for each call, killed when it has answered or when a limit is reached. (One kept warm, to fork for each
call, would be quicker and would have to be protected from its children.) What is said to it is in `child`.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minislice.teaching.assignments.exercise import Failure, raised

from . import wire
from .isolation import NOBODY

CHILD = Path(__file__).parent / "child.py"
PACKAGES = Path(np.__file__).parents[1]
TRIAL = [("trial", "def trial():\n    return 1")], "trial", {}
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment: what Python may need to start
NAMEABLE = re.compile(r"[A-Z]\w{1,30}(Error|Exit|Interrupt|Iteration)")  # exceptions whose name goes into a comment
PLAIN = "it must be made of None, bool, int, float, str, arrays of numbers, tuples, lists and dictionaries, up to 1 MiB"
REASONS = {  # what is different from the student's notebook
    "NameError": "Only the cells of this answer and of those above it are read, from top to bottom.",
    "ModuleNotFoundError": "Only NumPy and Python's standard library are there.",
}


@dataclass(frozen=True)
class Sandbox:
    """Where students' functions are called, `isolated` in namespaces of its own unless the system `refused` them."""

    memory: int = 2 << 30  # bytes that one call may take
    cpu: int = 10  # seconds of processor time
    wall: int = 60  # seconds; many more than cpu: a busy machine is no reason for a student to lose points
    isolated: bool = True
    refused: str = ""

    def best(self) -> "Sandbox":
        """The sandbox, as well isolated as the computer allows, tried out."""
        sandbox = self
        try:
            answer = sandbox.call(*TRIAL)
        except OSError as error:
            sandbox = replace(self, isolated=False, refused=str(error))
            answer = sandbox.call(*TRIAL)
        if isinstance(answer, Failure):
            raise ValueError(f"a process for the students' code doesn't work here: {answer.what}")
        return sandbox

    def call(
        self,
        cells: Sequence[tuple[str, str]],
        function: str,
        arguments: Mapping[str, Any],
        candidate: Callable[..., Any] | None = None,
        seed: int | None = None,
    ) -> tuple[Any, Mapping[str, Any]] | Failure:
        """Execute cells, names and sources, and call a function that they define, as `exercise.Call` says.

        The last cell must succeed. A candidate is computed here: only questions to it and its answers cross. An OSError
        says that the process can't be set up as asked, before it saw anything of the student's.
        """
        request = {"cells": list(cells), "function": function, "arguments": dict(arguments), "seed": seed}
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="minislice-", ignore_cleanup_errors=True) as folder:
            process = self._start(folder)
            clock = threading.Timer(self.wall, self._kill, [process])
            clock.start()
            try:
                return _converse(process, request, candidate)
            except (EOFError, BrokenPipeError):
                return Failure("", self._why(process, time.monotonic() - started), status="stopped")
            finally:
                clock.cancel()
                self._kill(process)
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _start(self, folder: str) -> subprocess.Popen:
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            with contextlib.suppress(OSError):  # see isolation: nobody may not exist
                os.chown(folder, NOBODY, NOBODY)
        settings = (PACKAGES, folder, self.isolated, self.memory, self.cpu, self.wall + 10)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), *map(str, settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            | {name: os.environ[name] for name in KEPT if name in os.environ},
            start_new_session=True,
        )

    def _kill(self, process: subprocess.Popen) -> None:
        if self.isolated:  # what we started is the one outside, which kills the one inside
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        if hasattr(os, "killpg") and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()

    def _why(self, process: subprocess.Popen, lasted: float) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # a moment passes between the last of the pipe and the end
        status = process.returncode or 0
        if lasted >= self.wall:
            return f"stopped: it took more than {self.wall} s"
        if status in (-9, 128 + 9) and lasted >= self.cpu:  # SIGKILL, here or inside the namespaces
            return f"stopped: it took more than {self.cpu} s of processor time"
        if status < 0 or status > 128:
            return "stopped: the process crashed"
        return "stopped: the process ended before the function returned"


def _converse(process: subprocess.Popen, request: dict, candidate: Callable | None) -> tuple | Failure:
    """Hand a request over and listen until there is an answer."""
    try:
        ready = wire.receive(process.stdout)
    except (EOFError, wire.WireError):
        ready = "it ended before it was ready"
    if ready is not True:
        raise OSError(f"a process for students' code can't be started: {ready}")
    try:
        wire.send(process.stdin, request)
    except wire.WireError:
        return Failure("", "the cells are too large", status="stopped")
    while True:
        try:
            message = wire.receive(process.stdout)
        except wire.WireError:
            message = None
        match message:  # str(...) looks at the type before it compares: a message may be anything
            case (str("call"), list(arguments)) if candidate:
                wire.send(process.stdin, _asked(candidate, arguments))
            case (str("returned"), result, dict(after)) if after.keys() == request["arguments"].keys():
                return result, after
            case (str("raised"), str(name), int(line)):
                return _raised(name, line, re.split(r"\r\n|\r|\n", request["cells"][-1][1]))
            case (str("missing"),):
                return Failure("", f"the cell defines no function {request['function']}", status="unanswered")
            case (str("unsendable"),):
                return Failure("the result", PLAIN)
            case _:
                what = "stopped: it wrote to the pipe for the result what is no result"
                return Failure("", what, status="stopped")


def _raised(name: str, number: int, lines: Sequence[str]) -> Failure:
    """The failure of an answer that claims to have raised an exception in one of its lines."""
    line = number if 0 < number <= len(lines) else None
    code = lines[line - 1][:100] if line else ""
    code = "".join(character if character.isprintable() else " " for character in code)  # no line of its own
    name = name if NAMEABLE.fullmatch(name) else "an exception"
    return replace(raised(name, "", line, code), mistake=REASONS.get(name, ""))


def _asked(candidate: Callable[..., Any], arguments: list) -> tuple:
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
