"""What comes with minislice: small trained models, the paper's tables, results measured, a text that is everywhere."""

import csv
import json
import os
import pydoc_data.topics
import sysconfig
import zlib
from functools import cache
from pathlib import Path

EMBEDDED = ("mini-opt", "mini-llama", "mini-phi")  # the small trained models
SEQLEN = 256  # they were trained on windows of so many tokens

_LIBRARY = sysconfig.get_path("stdlib")
# Folders of the standard library that are tests, tables or other people's packages.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data"),
    *("idlelib", "lib2to3", "ensurepip", "turtledemo", "__pycache__"),
}


def stdlib_documents(split: str) -> list[str]:
    """The text that every CPython carries: the language reference and the standard library's sources.

    A document belongs to one of ten parts by a checksum of its *name*, so that the split is the same on every machine
    and (where a document exists in both) in every version of Python. Reference topics come first, then modules.

    Args:
        split: "test", one part, which the embedded models of `data/` have never seen; "train", the nine others, on
            which they were trained; "calibration", one part of those nine.
    """
    parts = {"test": {0}, "train": set(range(1, 10)), "calibration": {1}}[split]
    topics = {f"topics/{name}": text for name, text in pydoc_data.topics.topics.items()}
    return [
        topics[name] if name in topics else Path(_LIBRARY, name).read_text(encoding="utf-8", errors="replace")
        for name in [*topics, *_modules()]
        if zlib.crc32(name.encode()) % 10 in parts
    ]


@cache
def _modules() -> list[str]:
    """The paths of the standard library's sources, in alphabetical order."""
    names = []
    for place, folders, files in os.walk(_LIBRARY):
        folders[:] = {*folders} - _SKIPPED_FOLDERS  # where `walk` goes on
        names += [Path(place, file).relative_to(_LIBRARY).as_posix() for file in files if file.endswith(".py")]
    return sorted(names)


def data_folder() -> Path:
    """The folder `data`: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    return package / "data" if (package / "data").is_dir() else package.parent / "data"


def paper_table(number: int) -> list[dict[str, str | float]]:
    """The rows of one of the paper's tables (`data/paper`), numbers as floats."""
    folder = data_folder() / "paper"
    file = next(folder.glob(f"table{number}_*.csv"), None)
    if file is None:
        raise ValueError(f"there is no table {number} in {folder}")
    with file.open(newline="", encoding="utf-8") as rows:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(rows)]


def results(name: str) -> list[dict]:
    """The rows of one file of `data/results`: what a script of this repository measured and was committed."""
    lines = (data_folder() / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _number(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value
