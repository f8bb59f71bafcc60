"""The folder of an unfinished run, beside the folder NAME that the run makes.

.NAME.partial/.model.lock         held while a run is at work
.NAME.partial/settings.json       what is sliced, on what, and how
.NAME.partial/state.pt            what is reached, sizes and times of change; replaced whole after each part
.NAME.partial/signal-5e0c81b2-0   the calibration set's signal, the share of process 0
.NAME.partial/model/              the new model's files
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from ..architecture.folder import make, place_for, unmake, whole_file
from ..measuring.lock import alone
from ..storage.unfinished import SETTINGS, begin
from .processes import Processes


class WorkFolder:
    """What a run leaves on the disk until its folder, `target`, is finished.

    The first of several processes calls `begin`, `write` and `remove`; all call the other methods.
    """

    def __init__(self, target: Path, processes: Processes):
        self.processes = processes
        place = processes.gathered(place_for(target) if processes.is_first else None)[0]
        self.path = place / f".{target.name}.partial"
        self.model, self.state_file = self.path / "model", self.path / "state.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out; a ValueError if one is at work. An empty folder vanishes."""
        if not self.processes.is_first:
            self.processes.wait()
            yield
            return
        made = make(self.path) or [self.path]
        try:
            with alone(self.model):
                if self.read().get("finished") and not self.model.exists():
                    self.remove()  # the run that left it was killed when its model was in place
                self.processes.wait()
                yield
        finally:
            unmake(made)

    def begin(self, settings: dict[str, Any]) -> None:
        """Begin a run, or continue the folder's, which must have the same settings."""
        begin(self.path, settings)
        self.model.mkdir(exist_ok=True)
        self._delete_all_but([name for signals in self.read().get("signals", ()) for name in signals])

    def read(self) -> dict[str, Any]:
        """The state, {} where there is none; a ValueError if the file is damaged."""
        if not self.state_file.exists():
            return {}
        with suppress(Exception):  # a damaged file can fail in any way
            if ZipFile(self.state_file).testzip() is None:  # torch looks at no checksum
                return dict(torch.load(self.state_file, weights_only=True))
        raise ValueError(
            f"{self.state_file} is damaged, or of another version of minislice; delete {self.path} to start again"
        )

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state whole."""
        with whole_file(self.state_file) as new:
            torch.save(state, new)

    def remove(self) -> None:
        """Delete what a run has written, when its model is in place; the state last: it tells that the run is done."""
        self._delete_all_but(())
        (self.path / SETTINGS).unlink(missing_ok=True)
        self.state_file.unlink()

    def _delete_all_but(self, needed: Collection[str]) -> None:
        for pattern in ("signal-*-*", ".*.partial-*", "model/.*.partial-*"):
            for path in self.path.glob(pattern):
                if path.name not in needed:
                    path.unlink()
