"""Where a model is to be saved: what can't be written to is told before the work, and nothing is deleted by mistake."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import assignment
import pytest
import report
import reproduce
import torch
from commands import assert_refused
from safetensors import SafetensorError
from streamed import LLAMA, saved, snapshot

import minislice
from minislice.architecture.folder import require_free, whole_folder
from minislice.command.cli import run_script
from minislice.large.streaming import slice_streamed


@pytest.fixture
def no_work(monkeypatch):
    """No model is loaded before the output is found unusable."""
    for command in ("slice", "compress", "export", "recover", "compare"):
        monkeypatch.setattr(f"minislice.command.{command}.load_both", lambda *_, **__: pytest.fail("work has begun"))
    monkeypatch.setattr("minislice.large.streaming.TrainedWeights", lambda *_: pytest.fail("work has begun"))


@pytest.mark.parametrize("line", ["slice", "slice --stream", "compress", "export"])
def test_an_output_that_cannot_be_is_told_before_the_work(line, tmp_path, no_work, monkeypatch, run):
    def refused(out: Path, reason: str) -> None:
        assert_refused(run(*line.split(), "mini-llama", "--quiet", "--out", out), reason, str(out))

    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file")
    refused(tmp_path / "file" / "below" / "out", f"{tmp_path / 'file'} is a file")
    refused(tmp_path / ("n" * 256), "File name too long")
    refused(tmp_path / "new" / ("n" * 250), "File name too long")  # the folder that it is made in has a longer name

    def mkdir(path, *_, **__):  # as anybody but root sees it
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused(tmp_path / "out", os.strerror(errno.EACCES))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# What force must not delete


def test_force_refuses_by_name_what_is_surely_not_meant(tmp_path, monkeypatch):
    (tmp_path / "project" / "code" / ".git").mkdir(parents=True)
    (tmp_path / "worktree").mkdir()
    (tmp_path / "worktree" / ".git").write_text("gitdir: elsewhere")
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "home" / "me" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    before = snapshot(tmp_path)
    for folder, reason in [
        (tmp_path / "project", f"the git repository {tmp_path / 'project' / 'code'}"),
        (tmp_path / "worktree", "the git repository"),
        (tmp_path / "here", "the current directory"),
        (tmp_path / "home", "your home directory"),
        (tmp_path / "home" / "me", "your home directory"),
    ]:
        with pytest.raises(ValueError, match=f"force would delete .*{reason}"):
            require_free(folder, True)
    for force in (False, True):
        with pytest.raises(ValueError, match=r"is the current directory.* save to a folder in it"):
            require_free(".", force)
    assert snapshot(tmp_path) == before


APART = "which this run reads; write to another place"


@pytest.mark.parametrize(
    ("line", "out"),
    [
        *((["slice", "MODEL", "TEXT", "--force"], out) for out in ("models/dense", "models", "alias", "texts")),
        (["slice", "MODEL", "TEXT", "--stream", "--force"], "models/dense/sliced"),
        *((["compress", "MODEL", "TEXT", "--force"], "weights"), (["recover", "MODEL", "TEXT", "--force"], "texts")),
        *((["export", "MODEL", "--force"], "weights"), (["compare", "MODEL", "TEXT"], "models/dense")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
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
    assert_refused(run(*(names.get(word, word) for word in line), "--out", tmp_path / out), APART)
    assert snapshot(tmp_path) == before


def test_a_streamed_run_does_not_delete_its_own_model(tmp_path):
    dense = saved(LLAMA, tmp_path / "models")
    before = snapshot(tmp_path)
    for out in (dense, dense.parent):
        with pytest.raises(ValueError, match=APART):
            slice_streamed(dense, LLAMA.tokens(), out, force=True, width=10)
    assert snapshot(tmp_path) == before


SCRIPTS = {"reproduce": reproduce, "report": report, "assignment": assignment}  # of the repository
FOREIGN = {  # what is no output of ours: a user's file, a folder, a device
    "notes": lambda path: path.write_text("# Reproduction notes\n"),
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
}
REPRODUCE = "reproduce opt --profile ci --tables 5 --rows 1 --out x.md"
OWN = "reproduce opt --profile ci --wikitext2 results.jsonl --out results.jsonl"


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """Run a script, which must refuse, in an empty folder; any results make a report, without a word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("report.read", lambda path: [{"status": "done"}])
    monkeypatch.setattr("report.markdown", lambda records: "")
    monkeypatch.setattr("report.as_csv", lambda records: "")

    def refused(line: str) -> str:
        name, *arguments = line.split()
        assert run_script(SCRIPTS[name], arguments) == 2
        return capsys.readouterr().err

    return refused


@pytest.mark.parametrize(
    ("line", "file", "kind"),
    [
        *((REPRODUCE, "x.md", kind) for kind in ("notes", "a FIFO")),
        *(("report results.jsonl --out x.md", "x.md", kind) for kind in ("notes", "a folder")),
        ("report results.jsonl --out x.txt", "x.csv", "notes"),  # the table beside it
        *(("assignment build a1 --to x.md", "x.md", kind) for kind in FOREIGN),
        *(("assignment build a1 --to x.md --force", "x.md", kind) for kind in ("a folder", "a FIFO")),
    ],
)
def test_no_script_writes_over_what_is_not_of_its_kind(line, file, kind, tmp_path, script):
    foreign = tmp_path / file
    FOREIGN[kind](foreign)
    before = foreign.stat()
    assert str(foreign) in script(line)
    assert os.path.samestat(foreign.stat(), before) and foreign.stat().st_size == before.st_size
    assert list(tmp_path.iterdir()) == [foreign]


@pytest.mark.parametrize(
    "line", ["report results.csv --out results.md", "report results.jsonl --out results.jsonl", OWN]
)
def test_results_are_not_written_over_what_they_come_from(line, tmp_path, script):
    result = json.dumps({"schema": 1, "key": "x"}) + "\n"
    for name in ("results.csv", "results.jsonl"):
        Path(name).write_text(result)
    assert APART in script(line)
    assert snapshot(tmp_path) == {name: result.encode() for name in ("results.csv", "results.jsonl")}


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_what_appears_in_the_output_meanwhile_stays_and_the_new_folder_is_kept(name, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="exists and isn't empty") as error, whole_folder(out) as new:
        (new / "config.json").write_text("new")
        out.mkdir()
        (out / name).write_text("mine")
    assert str(new) in str(error.value) and (new / "config.json").read_text() == "new"
    assert snapshot(out) == {name: b"mine"}


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


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


# A full disk

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
POSITION = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3053440 vs 3053328")
FAULTS = {
    "modeling_utils.safe_save_file": FULL,
    "configuration_utils.PreTrainedConfig.to_json_file": OSError(28, "No space left on device"),
    "PreTrainedTokenizerBase.save_pretrained": Exception("No space left on device (os error 28)"),
}


def failing(fault):
    def fail(*_, **__):
        raise fault

    return fail


@pytest.mark.parametrize("where", FAULTS)
def test_a_disk_that_fills_up_at_any_file_is_one_line(where, tmp_path, monkeypatch, run):
    model, tokenizer = minislice.load("mini-llama")
    tokens = torch.randint(0, 4000, (4, 100))
    minislice.slice_model(model, tokens, adapter="none", slice_head=True, width=96)
    minislice.save(model, tmp_path / "model", tokenizer=tokenizer)
    monkeypatch.setattr(f"transformers.{where}", failing(FAULTS[where]))
    refused = run("export", tmp_path / "model", "--quiet", "--out", tmp_path / "out")
    assert_refused(refused, f"can't write {tmp_path / 'out'}: ", "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("fault", [FULL, POSITION, OSError(28, "No space left")])
def test_a_disk_that_fills_up_while_a_recovery_saves_is_one_line(fault, tmp_path, monkeypatch):
    model = minislice.slice_model(LLAMA.model().float(), LLAMA.tokens(), width=10)
    monkeypatch.setattr(torch, "save", failing(fault))
    with pytest.raises(OSError, match=f"can't write {tmp_path}"):
        minislice.recover(model, LLAMA.tokens(), folder=tmp_path / "run", steps=2, every=1, held_out=0.5)
