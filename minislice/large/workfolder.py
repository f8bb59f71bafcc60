"""The folder of an unfinished run: its settings, what it has reached, and the parts that it has finished."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..storage.files import whole_file
from .processes import Processes


class WorkFolder:
    """What a run leaves on the disk until it is finished."""

    def __init__(self, target: Path, processes: Processes):
        self.path = target.with_name(f".{target.name}.partial")
        self.model = self.path / "model"
        self.processes = processes

    def remove_if_finished(self) -> None:
        """Remove what a run has left that was killed in its very last step: the target is whole."""
        if self.path.exists() and not self.model.exists() and self.processes.index == 0:
            shutil.rmtree(self.path)

    def open(self, settings: dict[str, Any]) -> None:
        """Make the folder, or take up the run that it is from.

        Raises:
            ValueError: that run has other settings.
        """
        self.settings = json.loads(json.dumps(settings))
        before = self.progress()
        if before is None:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.model.mkdir(parents=True)
            self.write_progress({})
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

    def progress(self) -> dict[str, Any] | None:
        """What progress.json says; None where there is none."""
        try:
            return json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write_progress(self, reached: dict[str, Any]) -> None:
        """Replace progress.json whole."""
        text = json.dumps({"settings": self.settings, **reached})
        with whole_file(self.path / "progress.json") as new:
            new.write_text(text, encoding="utf-8")
