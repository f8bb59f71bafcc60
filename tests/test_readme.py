"""What README.md shows is so: its Python runs, its commands are ones that `minislice` takes, no file is left out."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import minislice
from minislice.command.cli import COMMANDS
from minislice.command.parser import parser_for

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_example_runs_and_shows_what_slicing_costs(tmp_path):
    (example,) = [text for language, text in BLOCKS if language == "python"]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, verdict, dense, sliced = done.stdout.splitlines()
    assert verdict == "The model has the invariance."
    perplexity, widths = sliced.split(" ", 1)
    assert 1 < 1.01 * float(dense) < float(perplexity) < 1.1 * float(dense)
    model, _ = minislice.load(tmp_path / "sliced")
    assert str(model.config.widths) == widths and model.config.widths[0] == 0.75 * model.config.hidden_size


COMMAND_LINES = [
    match
    for language, text in BLOCKS
    if language == "sh"
    for match in re.findall(r"(?:^|&& |-m -- )minislice (.*)$", text, re.MULTILINE)
]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_is_one_that_minislice_takes(line):
    arguments = parser_for(COMMANDS).parse_args(shlex.split(line))
    assert arguments.run is COMMANDS[line.split()[0]].run


def test_the_commands_were_found():
    found = {line.split()[0] for line in COMMAND_LINES}
    assert {"demo", "verify", "slice", "eval", "zeroshot", "recover", "cost", "reproduce", "report"} <= found


GUIDE = README.split("## Where to read what")[1].split("\n## ")[0]
PACKAGE = ROOT / "minislice"


def test_every_file_of_the_method_and_every_folder_is_in_the_reading_guide():
    method = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert method | {"architecture/blocks.py", "architecture/network.py"} == set(re.findall(r"`([\w/]+\.py)`", GUIDE))
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^\| (\w+) \|", GUIDE, re.MULTILINE)) - {"paper", "folder"} == folders


def test_the_whole_method_is_ten_files_and_a_thousand_lines_at_most():
    files = re.findall(r"`([\w/]+\.py)`", GUIDE.split("\n\n")[2])
    assert 5 < len(files) <= 10
    assert sum(len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in files) <= 1000


def test_every_script_that_made_a_number_is_there():
    scripts = re.findall(r"python (\S+\.py)", README)
    assert len(scripts) >= 4 and all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("name", ["real_language_model", "beyond"])
def test_a_table_is_what_was_measured(name):
    script = ROOT / "notebooks" / "measure" / f"{name}.py"
    done = subprocess.run([sys.executable, script, "--table"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tables = done.stdout.strip().split("\n\n")
    assert all(table.count("\n") >= 3 and table in README for table in tables)
