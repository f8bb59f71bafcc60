"""Processes that are forked from one server, which has imported everything: no ten seconds of imports for each.

The server imports what has heavy libraries behind it; minislice imports these where it uses them.
"""

import gc
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["minislice.command.slice", "minislice.large.streaming", "transformers.models.llama.modeling_llama"]
SERVER.set_forkserver_preload([*PRELOADED, "pytest", "hypothesis.strategies", "matplotlib.pyplot", "nbformat"])


class Forked:
    """A process that calls a function of some module, such as a test's, and ends with what it returns."""

    def __init__(self, function: Callable, *arguments, environment: dict[str, str] | None = None):
        self.output = Path(tempfile.mkstemp()[1])
        self.process = SERVER.Process(
            target=_work, args=(function, arguments, environment or {}, self.output), daemon=True
        )
        self.process.start()

    def ended(self, timeout: float = 200) -> subprocess.CompletedProcess:
        """Wait for its end; `stdout` is all that it printed."""
        self.process.join(timeout)
        if alive := self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        said = self.output.read_text()
        self.output.unlink()
        assert not alive, f"still running after {timeout} s: {said}"
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, said)


def group_of(count: int, function: Callable, *arguments) -> list[subprocess.CompletedProcess]:
    """The results of this many processes, which find one another as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [process.ended() for process in [Forked(function, *arguments, environment=rank) for rank in ranks]]


def _work(function: Callable, arguments: tuple, environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()  # what the server has imported is no garbage
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(function(*arguments))
