"""The house: the paper at the top level, the rest in wings, and every import one way (README, "Where to read what")."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minislice

PACKAGE = Path(__file__).parents[1] / "minislice"
# Lowest first: each may import those before it, and "paper" is the top level.
ROOMS = (
    *("architecture", "corpus", "paper", "measuring", "beyond", "storage"),
    *("recovery", "large", "teaching", "command"),
)
WINGS = tuple(room for room in ROOMS if room != "paper")
NEIGHBOURS = {"corpus": {"architecture"}, "storage": {"measuring", "beyond"}}  # beside each other, not one on the other
MAY_IMPORT = {room: {*ROOMS[:floor]} - NEIGHBOURS.get(room, set()) for floor, room in enumerate(ROOMS)}


def files() -> dict[str, ast.Module]:
    """The source of every file but the entrances, by its name in the package."""
    found = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return {
        name: ast.parse(path.read_text(encoding="utf-8"))
        for name, path in found.items()
        if name not in ("__init__.py", "__main__.py")
    }


def imported(name: str, tree: ast.Module) -> set[str]:
    """What a file imports: wings ("paper" for the top level) and the first words of what lies outside the package."""
    place = name.split("/")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            start = place[: len(place) - node.level + 1]
            for alias in node.names:
                path = [*start, *(node.module.split(".") if node.module else [alias.name])]
                if path[0] != "checks":  # imports nothing: every file may import it
                    found.add(path[0] if path[0] in WINGS else "paper")
    return found


def offences(name: str, tree: ast.Module) -> set[str]:
    """What a file imports and may not."""
    room = name.split("/")[0] if "/" in name else "paper"
    return (imported(name, tree) & {*WINGS, "paper"}) - MAY_IMPORT[room] - {room}


def test_every_import_goes_one_way():
    assert {name: found for name, tree in files().items() if (found := offences(name, tree))} == {}


def test_checks_imports_nothing_of_the_package():
    assert imported("checks.py", files()["checks.py"]) <= {*sys.stdlib_module_names}


def test_architecture_imports_torch_transformers_and_its_siblings_alone():
    """All of it travels with a saved model, to where minislice isn't installed."""
    checked = 0
    for name, tree in files().items():
        if name.startswith("architecture/"):
            assert imported(name, tree) <= {"architecture", "torch", "transformers", *sys.stdlib_module_names}, name
            for node in ast.walk(tree):  # transformers follows `from .x import` alone
                assert not (isinstance(node, ast.ImportFrom) and node.level) or (node.level == 1 and node.module), name
            checked += 1
    assert checked >= 7


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("slicing.py", "from .large import processes", {"large"}),
        ("pca.py", "from .storage.files import INDEX", {"storage"}),
        ("architecture/blocks.py", "from ..fusion import fuse", {"paper"}),
        ("corpus/text.py", "def f():\n    from ..command import cli", {"command"}),
        ("recovery/training.py", "from ..command import cost", {"command"}),
        ("measuring/timing.py", "from ..recovery.options import RecoveryOptions", {"recovery"}),
        ("measuring/cost.py", "from ..beyond.neurons import delete_neurons", {"beyond"}),
        ("measuring/cost.py", "from .. import rotation\nfrom ..teaching.plots import spectrum", {"teaching"}),
    ],
)
def test_an_import_the_wrong_way_is_found(name, line, found):
    assert offences(name, ast.parse(line)) == found


def test_importing_minislice_imports_nothing_heavy():
    """Torch and transformers take seconds; a name that needs them imports them when it is first used."""
    code = (
        "import sys, minislice; assert 'torch' not in sys.modules; minislice.slice_model; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    assert all(getattr(minislice, name) is not None for name in minislice.__all__)
    assert {*minislice.__all__} <= {*dir(minislice)}
