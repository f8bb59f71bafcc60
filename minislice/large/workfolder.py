"""The folder of an unfinished run, beside the folder NAME that the run makes.

    .NAME.partial/.model.lock         held while a run is at work
    .NAME.partial/state.pt            the run's settings, what it has reached, and seals; replaced whole after each part
    .NAME.partial/signal-5e0c81b2-0   the calibration set's signal, the share of process 0
    .NAME.partial/model/              the new model's files

A seal is a file's size and checksum. A run that continues checks the seal of every file that it reads.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..architecture.folder import make, place_for, sync, unmake, whole_file
from ..measuring.lock import alone
from ..storage.files import checksum
from .processes import Processes


class WorkFolder:
    """What a run leaves on the disk until it is finished; `target` is the folder that the run makes.

    Of several processes the first one calls `begin`, `write` and `remove`; all of them call the other methods.
    """

    def __init__(self, target: Path, processes: Processes):
        self.processes = processes
        place = processes.gathered(place_for(target) if processes.is_first else None)[0]
        self.path = place / f".{target.name}.partial"
        self.model, self.state_file = self.path / "model", self.path / "state.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out. The folder is made if it isn't there, and removed at the end if it is empty.

        Raises:
            ValueError: another run is at work in it; or it isn't empty, and no run has left it.
        """
        if not self.processes.is_first:
            self.processes.wait()
            yield
            return
        of_a_run = self.state_file.exists() or (self.path / ".model.lock").exists()
        if self.path.exists() and not of_a_run and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(
                f"{self.path} isn't of an unfinished run: it has no {self.state_file.name}; move it away, or save to "
                "another folder"
            )
        made = make(self.path) or [self.path]
        try:
            with alone(self.model):
                if (self.read() or {}).get("finished") and not self.model.exists():
                    self.remove()  # the run that left it was killed when its model was in place
                self.processes.wait()
                yield
        finally:
            unmake(made)

    def begin(self, settings: dict[str, Any]) -> None:
        """Begin a run, or continue the one that the folder is of.

        Raises:
            ValueError: that run has other settings.
        """
        self.settings = {name: repr(value) for name, value in settings.items()}
        state = self.read()
        if state is None:
            self.write({})
            state = self.read()
        theirs = state["settings"]
        differing = [name for name in self.settings if theirs.get(name) != self.settings[name]]
        if differing:
            told = "; ".join(f"{name} {theirs.get(name)} there, {self.settings[name]} here" for name in differing)
            raise ValueError(
                f"{self.path} holds an unfinished run with other settings ({told}); give the same settings to go on "
                "with it, save to another folder, or delete it to start again"
            )
        self.model.mkdir(exist_ok=True)
        self._delete_all_but(state.get("files", ()))

    def read(self) -> dict[str, Any] | None:
        """The state; None where there is none.

        Raises:
            ValueError: it isn't as a run has written it.
        """
        if not self.state_file.exists():
            return None
        content = memoryview(self.state_file.read_bytes())
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError(
                f"{self.state_file} is damaged, or of another version of minislice; delete {self.path} to start again"
            )
        return torch.load(io.BytesIO(content[32:]), weights_only=True)

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state whole. Its checksum stands before it in the file."""
        content = io.BytesIO()
        torch.save({"settings": self.settings, **state}, content)
        with whole_file(self.state_file) as new, open(new, "wb") as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())

    def seal(self, name: str) -> tuple[int, str]:
        """Have a file on the disk. Returns its seal."""
        sync(self.path / name)
        return (self.path / name).stat().st_size, checksum(self.path / name)

    def check(self, seals: dict[str, tuple[int, str]], names: Iterable[str]) -> None:
        """Raise a ValueError for the first of these files that isn't as it was when it was sealed."""
        for name in names:
            path = self.path / name
            if not path.is_file() or self.seal(name) != seals[name]:
                fault = "has changed since it was written" if path.is_file() else "is missing"
                raise ValueError(f"{path} {fault}; put it back to go on, or delete {self.path} to start again")

    def remove(self) -> None:
        """Delete what a run has written, when its model is in place; the state last: it tells whose folder it is."""
        self._delete_all_but(())
        self.state_file.unlink()

    def _delete_all_but(self, kept: Iterable[str]) -> None:
        for pattern in ("signal-*-*", ".*.partial-*", "model/.*.partial-*"):
            for path in self.path.glob(pattern):
                if path.name not in kept:
                    path.unlink()
