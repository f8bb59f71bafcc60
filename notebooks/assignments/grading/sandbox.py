"""Run one call of a student's function in a process that can do nothing else, and take what it says as a claim.

A new process for each call, killed when it has answered or when a limit is reached: nothing is left from one call to
the next. Starting Python and NumPy takes about a tenth of a second; a process kept warm, to fork for each call, would
be quicker and would have to be protected from its children.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .conversation import Answer, converse
from .isolation import NOBODY
from .process import Limits, Process

CHILD = Path(__file__).parent / "child.py"
PACKAGES = Path(np.__file__).parents[1]
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment: what Python may need to start


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
                raise ValueError(str(error)) from None
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
                return converse(process, request, candidate)

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
        process = Process(started, self.isolated, self.limits)
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
