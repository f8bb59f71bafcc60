"""The house: the paper at the top level, the rest in wings, and every import one way (README, "Folders")."""

import ast
import subprocess
import sys
from pathlib import Path

import minislice

PACKAGE = Path(__file__).parents[1] / "minislice"
# Lowest first: each may import those before it, and "paper" is the top level.
ROOMS = ["architecture", "corpus", "paper", "measuring", "beyond"]
ROOMS += ["symmetries", "storage", "recovery", "large", "teaching", "command"]
# Rooms beside each other, not one on the other.
NEIGHBOURS = {"corpus": {"architecture"}, "storage": {"measuring", "beyond", "symmetries"}}
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
    for path in PACKAGE.rglob("*.py")
    if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
}


def imported(name: str, source: str) -> set[str]:
    """What a file imports: wings ("paper" for the top level) and the first words of what lies outside the package."""
    place, found = name.split("/")[:-1], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            start = place[: len(place) - node.level + 1]
            for alias in node.names:
                first = [*start, *(node.module or alias.name).split(".")][0]
                found |= {first if first in ROOMS else "paper"} - ({"paper"} if first == "checks" else set())
    return found


def offences(name: str, source: str) -> set[str]:
    """What a file imports and may not; every file may import `checks`, which imports nothing."""
    room = name.split("/")[0] if "/" in name else "paper"
    allowed = {*ROOMS[: ROOMS.index(room) + 1]} - NEIGHBOURS.get(room, set())
    return (imported(name, source) & {*ROOMS}) - allowed


def test_every_import_goes_one_way():
    assert {name: found for name, source in SOURCES.items() if (found := offences(name, source))} == {}
    assert imported("checks.py", SOURCES["checks.py"]) <= {*sys.stdlib_module_names}


def test_architecture_imports_torch_transformers_and_its_siblings_alone():
    """All of it travels with a saved model, to where minislice isn't installed."""
    files = {name: source for name, source in SOURCES.items() if name.startswith("architecture/")}
    assert len(files) >= 7
    for name, source in files.items():
        assert imported(name, source) <= {"architecture", "torch", "transformers", *sys.stdlib_module_names}, name
        for node in ast.walk(ast.parse(source)):  # transformers follows `from .x import` alone
            assert not (isinstance(node, ast.ImportFrom) and node.level) or (node.level == 1 and node.module), name


def test_an_import_the_wrong_way_is_found():
    assert offences("slicing.py", "from .large import processes") == {"large"}
    assert offences("architecture/blocks.py", "from ..fusion import fuse") == {"paper"}
    assert offences("corpus/text.py", "def f():\n    from ..command import cli") == {"command"}
    assert offences("storage/files.py", "from ..beyond.neurons import delete_neurons") == {"beyond"}


def test_neither_importing_minislice_nor_help_imports_torch_and_every_public_name_is_there():
    code = "import sys, minislice.command.parser as p; p.make_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(getattr(minislice, name) is not None for name in minislice.__all__)
