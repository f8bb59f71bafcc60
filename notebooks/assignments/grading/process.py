"""A started process: what it may take, how it is killed, and why it ended."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from . import wire


@dataclass(frozen=True)
class Limits:
    """What one call may take: bytes of memory, seconds of processor time, seconds by the clock."""

    memory: int = 2 << 30
    cpu: int = 10
    wall: int = 60  # much more than cpu: a busy machine is no reason for a student to lose points


class Process:
    """A started process, with which plain values are exchanged."""

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
