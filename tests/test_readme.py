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
    for match in re.findall(r"(?:^|&& |-m )minislice (.*)$", text, re.MULTILINE)
]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_is_one_that_minislice_takes(line):
    arguments = parser_for(COMMANDS).parse_args(shlex.split(line))
    assert arguments.run is COMMANDS[line.split()[0]].run


def test_the_commands_were_found():
    assert {line.split()[0] for line in COMMAND_LINES} == {
        *("demo", "verify", "slice", "eval", "zeroshot", "recover", "generate"),
    }


def test_every_file_of_the_package_is_in_the_reading_guide():
    guide = README.split("## Where to read what")[1].split("\n## ")[0]
    package = ROOT / "minislice"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if not path.name.startswith("__")}
    assert set(re.findall(r"`([\w/]+\.py)`", guide)) == files


def test_every_script_that_made_a_number_is_there():
    scripts = re.findall(r"python (\S+\.py)", README)
    assert len(scripts) >= 4 and all((ROOT / script).is_file() for script in scripts)


def test_the_table_of_the_real_language_model_is_what_was_measured():
    script = ROOT / "tests" / "benchmarks" / "real_language_model.py"
    done = subprocess.run([sys.executable, script, "--table"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 3 and done.stdout in README
