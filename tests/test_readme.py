"""What the READMEs show is so: Python and scripts run, minislice takes every command, no file is left out."""

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

import minislice
from minislice.command.parser import make_parser

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / name / "README.md").read_text(encoding="utf-8")
    for name in (".", "data/results", "minislice/beyond", "minislice/large")
}
README = PAGES["."]
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.M)]


@pytest.mark.slow
def test_the_python_example_runs_and_shows_what_slicing_costs(tmp_path, monkeypatch, capsys):
    (example,) = [text for language, text in BLOCKS if language == "python"]
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    *_, verdict, dense, sliced = capsys.readouterr().out.splitlines()
    assert verdict == "The model has the invariance."
    perplexity, widths = sliced.split(" ", 1)
    assert 1 < 1.01 * float(dense) < float(perplexity) < 1.1 * float(dense)
    model, _ = minislice.load(tmp_path / "mini-llama-sliced")
    assert str(model.config.widths) == widths and model.config.widths[0] == 0.75 * model.config.hidden_size


def test_every_command_is_one_that_minislice_takes():
    shell = "".join(text.replace("\\\n", "") for language, text in BLOCKS if language == "sh")
    lines = re.findall(r"(?:^|&& |-m -- )minislice (.*)$", shell, re.MULTILINE)
    assert {"demo", "verify", "slice", "compress", "compare"} <= {line.split()[0] for line in lines}
    for line in lines:
        assert make_parser().parse_args(shlex.split(line)).command == line.split()[0]


def test_every_file_of_the_paper_and_every_folder_is_named():
    files = {path.name for path in (ROOT / "minislice").glob("*.py") if not path.name.startswith("__")}
    guide = README.split("## Read it")[1].split("\n## ")[0]
    assert files | {"architecture/blocks.py"} == set(re.findall(r"`([\w/]+\.py)`", guide))
    folders = {path.parent.name for path in (ROOT / "minislice").glob("*/__init__.py")}
    assert folders <= set(re.findall(r"`(\w+)`", README.split("## Folders")[1]))
    beyond = {path.name for path in (ROOT / "minislice/beyond").glob("*.py") if not path.name.startswith("__")}
    assert beyond <= set(re.findall(r"`(\w+\.py)`", PAGES["minislice/beyond"]))


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150 and [line for line in lines if len(line) > 120 and "](" not in line] == []


def test_every_script_that_made_a_number_is_there():
    scripts = {script for page in PAGES.values() for script in re.findall(r"python (\S+\.py)", page)}
    assert len(scripts) >= 4 and [script for script in scripts if not (ROOT / script).is_file()] == []


ONCE = ["--rounds", "1", "--threads", "1"]
FEW = ["--shape", "tiny", "--samples", "2", "--seqlen", "64", "--beyond", "both"]
SMALL = {  # the arguments of a script, and what it reports
    "inference_cost": (["--layers", "1", "--vocabulary", "512", "--steps", "1", *ONCE], {"OPT", "LLaMA", "Phi"}),
    "slicing_cost": ([*FEW, *ONCE], {"slicing / forward", "by phase", "beyond / slicing"}),
    "streaming_cost": (["--shape", "tiny", "--threads", "1"], {"slicing / forward", "by phase", "peak, GiB"}),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("script", SMALL)
def test_a_script_that_measures_runs_at_small_size_and_reports(script, monkeypatch, capsys):
    arguments, reported = SMALL[script]
    monkeypatch.setattr("sys.argv", [script, *arguments, "--json"])
    import_module(script).main()
    result = json.loads(capsys.readouterr().out)
    assert reported <= result.keys()
    assert all(seconds > 0 for seconds in result.get("by phase", {}).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["real_language_model", "beyond"])
def test_a_table_is_what_was_measured(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--table"])
    import_module(name).main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert all(table.count("\n") >= 3 and table in PAGES["data/results"] for table in tables)
