"""Where a model is to be saved: what can't be written to is told before the work, and nothing is deleted by mistake."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import assignment
import pytest
import report
import reproduce
from commands import assert_refused
from safetensors import SafetensorError
from streamed import LLAMA, saved, snapshot

import minislice
from minislice.architecture.folder import require_free, whole_folder
from minislice.command.cli import run_script


@pytest.mark.parametrize("line", ["slice", "slice --stream", "compare"])
def test_an_output_that_cannot_be_is_told_before_the_work(line, tmp_path, no_work, monkeypatch, run):
    def mkdir(path, *_, **__):  # as anybody but root sees it
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    command = [*line.split(), "mini-llama", "--quiet", "--out"]
    (tmp_path / "file").write_text("x")
    assert_refused(run(*command, tmp_path / "file"), f"{tmp_path / 'file'} is a file")
    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert_refused(run(*command, tmp_path / "out"), os.strerror(errno.EACCES), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_force_refuses_by_name_what_is_surely_not_meant(tmp_path, monkeypatch):
    (tmp_path / "project" / "code" / ".git").mkdir(parents=True)
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "home" / "notes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    reasons = {
        "project": f"the git repository {tmp_path / 'project' / 'code'}",
        "here": "the current directory",
        "home": "your home directory",
    }
    for folder, reason in reasons.items():
        with pytest.raises(ValueError, match=f"force would delete .*{reason}"):
            require_free(tmp_path / folder, True)


APART = "which this run reads; write to another place"


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("slice MODEL TEXT --force", "alias"),
        ("slice MODEL TEXT --stream --force", "models/dense/sliced"),
        ("compress MODEL TEXT --force", "weights"),
        ("recover MODEL TEXT --force", "texts"),
        ("export MODEL --force", "models"),
        ("compare MODEL TEXT", "models/dense"),
    ],
)
def test_no_command_writes_over_what_it_reads(line, out, tmp_path, no_work, run):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    (tmp_path / "models" / "dense").mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    for file in saved(LLAMA, tmp_path / "elsewhere").iterdir():  # as in the hub's cache: a folder of links
        file.rename(tmp_path / "weights" / file.name)
        (tmp_path / "models" / "dense" / file.name).symlink_to(tmp_path / "weights" / file.name)
    (tmp_path / "alias").symlink_to(tmp_path / "models")
    before = snapshot(tmp_path)
    names = {"MODEL": tmp_path / "models" / "dense", "TEXT": f"--calibration={tmp_path / 'texts' / 'a.txt'}"}
    assert_refused(run(*(names.get(word, word) for word in line.split()), "--out", tmp_path / out), APART)
    assert snapshot(tmp_path) == before


NOTES = b"# Reproduction notes\n"
RESULTS = b'{"schema": 1, "key": "x"}\n'
SCRIPTS = {"reproduce": reproduce, "report": report, "assignment": assignment}


@pytest.mark.parametrize(
    ("line", "file", "content"),
    [
        ("reproduce opt --profile ci --tables 5 --rows 1 --out x.md", "x.md", NOTES),
        ("report results.jsonl --out x.md", "x.md", NOTES),
        ("report results.jsonl --out x.txt", "x.csv", NOTES),  # the table beside it
        ("assignment build a1 --to x.md", "x.md", NOTES),
        ("assignment build a1 --to x.md/a1.ipynb", "x.md", NOTES),
        ("report x.jsonl --out x.jsonl", "x.jsonl", RESULTS),  # what it reads
        ("reproduce opt --profile ci --wikitext2 x.jsonl --out x.jsonl", "x.jsonl", RESULTS),
    ],
)
def test_no_script_writes_over_what_it_reads_or_what_is_not_of_its_kind(
    line, file, content, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "read", lambda path: [{"status": "done"}])  # any results make a report
    monkeypatch.setattr(report, "markdown", lambda records: "")
    monkeypatch.setattr(report, "as_csv", lambda records: "")
    (tmp_path / file).write_bytes(content)
    script, *arguments = line.split()
    assert run_script(SCRIPTS[script], arguments) == 2
    said = capsys.readouterr().err
    assert (APART if content == RESULTS else str(tmp_path / file)) in said and "with force" not in said
    assert snapshot(tmp_path) == {file: content}


def test_what_appears_in_the_output_meanwhile_stays_and_the_new_folder_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="exists and isn't empty") as error, whole_folder(out) as new:
        (new / "config.json").write_text("new")
        out.mkdir()
        (out / "config.json").write_text("mine")
    assert str(new) in str(error.value) and (new / "config.json").read_text() == "new"
    assert snapshot(out) == {"config.json": b"mine"}


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_an_interrupted_replacement_leaves_the_old_or_the_new(renames, tmp_path, monkeypatch):
    with whole_folder(tmp_path / "out") as new:
        (new / "config.json").write_text("old")
    rename, done = Path.rename, []

    def interrupted(path, target):
        if len(done) == renames:
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        rename(path, target)
        done.append(path)

    monkeypatch.setattr(Path, "rename", interrupted)
    with suppress(KeyboardInterrupt), whole_folder(tmp_path / "out", force=True) as new:
        (new / "config.json").write_text("new")
    assert snapshot(tmp_path) == {"out/config.json": b"new" if renames == 2 else b"old"}


def test_what_appears_between_two_renames_costs_nobody_a_file(tmp_path, monkeypatch):
    with whole_folder(out := tmp_path / "out") as new:
        (new / "config.json").write_text("old")
    rename = Path.rename

    def watched(path, target):
        if path.name != "out":
            monkeypatch.setattr(Path, "rename", rename)
            (out / "theirs").mkdir(parents=True)
        rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    with pytest.raises(ValueError, match="The new folder is whole"), whole_folder(out, force=True) as new:
        (new / "config.json").write_text("new")
    assert sorted(snapshot(tmp_path).values()) == [b"new", b"old"]


FAULTS = {
    "transformers.modeling_utils.safe_save_file": SafetensorError("I/O error: No space left on device (os error 28)"),
    "transformers.configuration_utils.PreTrainedConfig.to_json_file": OSError(28, "No space left on device"),
}


@pytest.mark.parametrize("where", FAULTS)
def test_a_disk_that_fills_up_at_any_file_is_one_error(where, tmp_path, monkeypatch):
    monkeypatch.setattr(where, Mock(side_effect=FAULTS[where]))
    model = minislice.slice_model(LLAMA.model().float(), LLAMA.tokens(), width=10)
    with pytest.raises(OSError, match=f"can't write {tmp_path}"):
        minislice.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
