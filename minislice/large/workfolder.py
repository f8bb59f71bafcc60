"""The folder of an unfinished run, beside the folder NAME that the run makes (or in it, see `architecture.folder`).

    .NAME.partial/minislice.lock        held while a run is at work; the system frees it when the process ends
    .NAME.partial/progress.json         the settings of the run, what it has reached, and checksums; replaced whole
    .NAME.partial/state-3.safetensors   after part 3: the basis, the spectra, the random generator
    .NAME.partial/signal-4-0            the calibration set's signal at some boundary, the share of process 0
    .NAME.partial/model/                the new model's files

Nothing in it is trusted: a run that goes on from it has checked the size and the checksum of every file that it reads.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..architecture.folder import make, place_for, unmake, whole_file
from ..storage.files import checksum
from .processes import Processes

PROGRESS, LOCK = "progress.json", "minislice.lock"
NAMES = re.compile(rf"model|{LOCK}|{PROGRESS}|\.{PROGRESS}\.partial-\w+|\.?(state|signal)-[\w.-]+")  # that a run writes


class WorkFolder:
    """What a run leaves on the disk until it is finished."""

    def __init__(self, target: Path, processes: Processes):
        place = processes.gathered(place_for(target) if processes.index == 0 else None)[0]
        self.path = place / f".{target.name}.partial"
        self.model = self.path / "model"
        self.processes = processes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, which is made where it isn't there, and removed at the end where no run has begun in it.

        The first process holds it for all. Only a run that holds it removes anything.

        Raises:
            ValueError: another run holds it; or the folder has something in it that no run has written.
        """
        lock = FileLock(self.path / LOCK)
        if self.processes.index == 0:
            self._require_own()
            made = make(self.path) or [self.path]
            try:
                lock.acquire(timeout=0)
            except (Timeout, FileNotFoundError) as error:  # held; or removed by the run that held it
                raise ValueError(
                    f"{self.path} is in use by another run that makes the same folder; let it finish, or save to "
                    "another folder"
                ) from error
        self.processes.wait()
        try:
            yield
        finally:
            if lock.is_locked:
                if not (self.path / PROGRESS).exists():
                    (self.path / LOCK).unlink(missing_ok=True)  # while it is held: a run that waits for it is refused
                    unmake(made)
                lock.release()

    def _require_own(self) -> None:
        """Before there is a progress.json, a run leaves no more than its lock."""
        if not self.path.exists():
            return
        begun = (self.path / PROGRESS).exists()
        expected = NAMES if begun else re.compile(rf"{LOCK}|\.{PROGRESS}\.partial-\w+")
        names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else [""]
        if strangers := sorted(name for name in names if not expected.fullmatch(name)):
            what = f"{strangers[0]} is in it, which no run has written" if begun else f"it has no {PROGRESS}"
            raise ValueError(f"{self.path} isn't of an unfinished run: {what}; move it away, or save to another folder")

    def open(self, settings: dict[str, Any]) -> None:
        """Begin a run, or take up the one that the folder is of.

        Raises:
            ValueError: that run has other settings.
        """
        self.settings = json.loads(json.dumps(settings))
        before = self.progress()
        if before is None:
            self.write_progress({})
            self.model.mkdir()
            return
        differing = [
            f"{name} {before['settings'].get(name)!r} there, {value!r} here"
            for name, value in self.settings.items()
            if before["settings"].get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds an unfinished run with other settings ({'; '.join(differing)}); give the same "
                "settings to go on with it, save to another folder, or delete it to start again"
            )
        self.model.mkdir(exist_ok=True)
        for unfinished in self.path.rglob(".*.partial-*"):  # files that a killed run was writing
            unfinished.unlink()

    def progress(self) -> dict[str, Any] | None:
        """What progress.json says; None where there is none.

        Raises:
            ValueError: it isn't as a run has written it.
        """
        path = self.path / PROGRESS
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("checksum") != _checksum_of(found):
                raise ValueError("its checksum is of something else")
            return found
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged, or of another version of minislice; delete {self.path} to start again"
            ) from error

    def is_finished(self) -> bool:
        """Whether all that a run has left is to be removed: its model is where it should be."""
        before = self.progress()
        return before is not None and "finished" in before and not self.model.exists()

    def write_progress(self, reached: dict[str, Any]) -> None:
        """Replace progress.json whole."""
        said = json.loads(json.dumps({"settings": self.settings, **reached}))
        with whole_file(self.path / PROGRESS) as new:
            new.write_text(json.dumps({**said, "checksum": _checksum_of(said)}), encoding="utf-8")

    def seal(self, name: str) -> tuple[str, list]:
        """A file's name in the folder, and what `check` needs to know it again: its size, its checksum."""
        path = self.path / name
        return name, [path.stat().st_size, checksum(path)]

    def check(self, seals: dict[str, list], names: Iterable[str]) -> None:
        """Raise a ValueError for the first of these files that isn't as it was when it was sealed."""
        for name in names:
            path, (size, expected) = self.path / name, seals[name]
            if not path.is_file():
                fault = "is missing"
            elif path.stat().st_size != size:
                fault = f"has {path.stat().st_size} bytes in place of {size}"
            elif checksum(path) != expected:
                fault = "has changed since it was written"
            else:
                continue
            raise ValueError(f"{path} {fault}; put it back to go on, or delete {self.path} to start again")

    def remove(self) -> None:
        """Remove what a run has written; progress.json goes last, so that a folder that is left is known as a run's."""
        for path in self.path.iterdir():
            if NAMES.fullmatch(path.name) and path.name not in (PROGRESS, LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.path / PROGRESS).unlink()


def _checksum_of(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
