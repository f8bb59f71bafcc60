"""The command `minislice`: its exit status, one JSON document on stdout, one line on stderr, and what it writes."""

import json
import os
import pydoc_data.topics
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import mistakes
import pytest
import torch
from commands import assert_refused, document
from models import Recipe
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import minislice
from minislice.command.cli import SCRIPTS, main
from minislice.command.inputs import given, texts_of
from minislice.command.parser import COMMANDS, make_parser
from minislice.corpus.embedded import data_folder
from minislice.corpus.text import load_text, sample, tokenize, windows
from minislice.invariance import STEPS
from minislice.options import SlicingOptions

SIZES = ["--samples", "6", "--seqlen", "48"]
FEW = ["--eval-samples", "5"]
TINY = ["--samples", "1", "--seqlen", "24"]
OPTIONS = {"mini-llama": ["--slicing", "0.4"], "mini-opt": ["--width", "100", "--adapter", "full", "--slice-head"]}
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of texts and models, good and bad; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("place")
    topics = list(pydoc_data.topics.topics.values())
    for name, text in {
        "calibration.txt": "\n\n".join(topics[0:30:2]),
        "test.txt": "\n\n".join(topics[1:30:2]),
        "short.txt": "A few words.",
        "blank.txt": " \n\n\t",
        "broken.json": '["a",',
        "surrogate.json": '["a \\ud800 b"]',
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "link.txt").symlink_to(folder / "test.txt")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.txt").write_text("mine")
    (folder / "no model").mkdir()
    model, tokenizer = minislice.load("mini-opt")
    model.model.decoder.layers[0].fc1.weight.data[0, 0] = torch.nan
    tiny = Recipe("llama").model().float()  # of 120 tokens: the tokenizer belongs to another model
    for name, saved in {"foreign": tiny, "mute": tiny, "cut": tiny, "illiterate": tiny, "nan": model}.items():
        saved.save_pretrained(folder / name)
        if name not in ("mute", "illiterate"):
            tokenizer.save_pretrained(folder / name)
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder / "illiterate")
    os.truncate(folder / "cut" / "model.safetensors", 1000)
    for name in ("beams", "code"):
        shutil.copytree(data_folder() / "mini-llama", folder / name)
    (folder / "beams" / "generation_config.json").write_text('{"num_beams": 0}')
    config = json.loads((folder / "code" / "config.json").read_text())
    places = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnForCausalLM"}
    (folder / "code" / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": places}))
    (folder / "code" / "code.py").write_text(OWN_CODE)
    return folder


def texts(place: Path, calibration="calibration.txt", evaluation="test.txt") -> list[str]:
    return ["--calibration", f"{place}/{calibration}", "--evaluation", f"{place}/{evaluation}"]


@pytest.fixture(scope="module")
def saved(place, tmp_path_factory) -> Path:
    """Models that `minislice slice --out` wrote, each with what it printed beside it."""
    folder = tmp_path_factory.mktemp("saved")
    whole = ["--slicing", "0.5", "--adapter", "none", "--slice-head"]
    runs = {name: [name, *options] for name, options in OPTIONS.items()}
    runs |= {"llama-whole": ["mini-llama", *whole], "opt-whole": ["mini-opt", *whole]}
    for name, arguments in runs.items():
        command = ["slice", *arguments, *texts(place), *SIZES, *FEW, "--quiet", "--json", "--out", f"{folder}/{name}"]
        with pytest.MonkeyPatch.context() as patch, open(folder / f"{name}.json", "w") as report:
            patch.setattr("sys.stdout", report)
            assert main(command) == 0
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below the folder, with what would change if it were written to."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# ---- every command does what it says ----


def test_demo_measures_every_step_of_every_embedded_model(run, monkeypatch, tmp_path):
    monkeypatch.setattr("minislice.command.demo.SEQLEN", 64)
    monkeypatch.setattr("minislice.command.demo.EMBEDDED", names := ["mini-opt", "mini-phi"])  # the LLaMA: see below
    monkeypatch.chdir(tmp_path)
    status, out, err = run("demo", "--samples", 4, "--json", "--quiet")
    rows = document(out)
    assert (status, err) == (0, "") and not list(tmp_path.iterdir())
    steps = ["dense", "fused", "rotated", "rotated per block", "rotated by PCA"]
    steps += [f"sliced 25%, {form}" for form in ("full", "low-rank", "none")]
    assert [(row["model"], row["step"]) for row in rows] == [(model, step) for model in names for step in steps]
    for row in rows:
        sliced = row["step"].startswith("sliced")
        assert (row["error"] > 1e-2) == sliced and (row["width"] < 192) == sliced
        assert row["text"].startswith("The statement") == (row["step"] in ("dense", "sliced 25%, low-rank"))


def test_demo_shows_text_a_picture_and_the_next_door(run, monkeypatch, tmp_path):
    monkeypatch.setattr("minislice.command.demo.EMBEDDED", ["mini-llama"])
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "minislice-demo.png"
    picture.write_text("of an earlier demo")
    status, out, _ = run("demo", "--samples", 4, "--quiet")
    assert status == 0 and out.startswith("\nmini-llama\n") and picture.stat().st_size > 10_000
    told = ["dense writes:", "sliced writes:", "'low-rank' computes the same", "can grow", "Learn:", "Use:", "Teach:"]
    assert all(words in out for words in told) and picture.name in out


@pytest.mark.parametrize("model", OPTIONS)
def test_verify_finds_the_invariance(model, run, place):
    arguments = ["verify", model, "--calibration", f"{place}/test.txt", *TINY]
    status, out, _ = run(*arguments, "--dtypes", "float64,float32", "--json")
    found = document(out)
    assert status == 0 and found["passed"] is True
    assert [(m["dtype"], m["step"]) for m in found["measurements"]] == [
        (dtype, step) for dtype in ("float64", "float32") for step in STEPS
    ]
    assert all(m["passed"] and m["error"] <= m["tolerance"] for m in found["measurements"])
    perplexities = [m["perplexity"] for m in found["measurements"]]
    assert perplexities == pytest.approx([found["reference_perplexity"]] * len(perplexities), rel=1e-4)


def test_verify_has_exit_status_1_where_the_invariance_fails(run, place, monkeypatch):
    arguments = ["verify", "mini-opt", "--calibration", f"{place}/test.txt", *TINY, "--dtypes", "float64", "--quiet"]
    status, out, err = run(*arguments)
    assert (status, err) == (0, "") and out.endswith("has the invariance.\n")
    right = resolve_name("minislice.rotation.fold_reader")
    monkeypatch.setattr("minislice.rotation.fold_reader", mistakes.transposed(right))
    status, out, err = run(*arguments, "--json")
    found = document(out)
    assert (status, err) == (1, "") and found["passed"] is False
    assert {m["step"] for m in found["measurements"] if not m["passed"]} == {"rotated", "rotated per block"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("mini-llama", {"slicing": 0.4}), ("mini-opt", {"width": 100, "adapter": "full", "slice_head": True})],
)
def test_slice_reports_what_the_library_computes_and_the_folder_says_so(name, options, saved, place):
    report = document((saved / f"{name}.json").read_text())
    model, tokenizer = minislice.load(name, dtype="float32", device="cpu")
    calibration = sample(tokenize(load_text(f"{place}/calibration.txt"), tokenizer), 6, 48)
    evaluation = windows(tokenize(load_text(f"{place}/test.txt"), tokenizer), 48, 5)
    assert report["model"] == name and report["saved to"] == str(saved / name)
    assert report["dense perplexity"] == pytest.approx(minislice.perplexity(model, evaluation), rel=1e-6)
    assert report["dense parameters"] == minislice.parameters(model)
    minislice.slice_model(model, calibration, **options)
    assert report["sliced perplexity"] == pytest.approx(minislice.perplexity(model, evaluation), rel=1e-6)
    assert report["sliced parameters"] == minislice.parameters(model) < report["dense parameters"]
    assert report["widths"] == model.slicing.widths and report["trained width"] == 192
    assert report["variance discarded"] == pytest.approx(model.slicing.discarded, abs=1e-9)
    assert (report["adapter"], report["adapter ranks"]) == (model.slicing.options.adapter, model.slicing.ranks)
    assert report["calibration"] == "calibration.txt, 6 x 48 tokens"
    assert report["evaluation"] == "test.txt, 5 x 48 tokens"
    record = json.loads((saved / name / "config.json").read_text())["slicing"]
    assert record["base_model"] == name and record["calibration"] == report["calibration"]
    assert record["perplexity"].startswith(f"{report['sliced perplexity']:.4f} (test.txt")


@pytest.mark.parametrize("model", OPTIONS)
def test_eval_of_the_saved_folder_agrees_with_what_slice_reported(model, run, saved, place):
    report = json.loads((saved / f"{model}.json").read_text())
    arguments = ["--evaluation", f"{place}/test.txt", "--seqlen", 48, *FEW]
    for name, kind in ((saved / model, "sliced"), (model, "dense")):
        status, out, err = run("eval", name, *arguments, "--json")
        assert status == 0 and "perplexity" in err  # progress goes to stderr alone, and is gone at the end
        assert not err.rpartition("\r")[2].strip()
        assert document(out) == {
            "model": str(name),
            "perplexity": pytest.approx(report[f"{kind} perplexity"], rel=1e-6),
            "parameters": report[f"{kind} parameters"],
            "evaluation": report["evaluation"],
            "seconds": pytest.approx(5, abs=5),
        }


def test_generate_of_the_saved_folder_goes_on_as_the_sliced_model_does(run, saved):
    arguments = ["generate", saved / "mini-opt", "--prompt", "The statement", "--max-new-tokens", 8, "--quiet"]
    sliced, tokenizer = minislice.load(saved / "mini-opt")
    ids = tokenizer("The statement", return_tensors="pt")["input_ids"]
    for _ in range(8):  # greedy, without transformers' generation
        with torch.no_grad():
            ids = torch.cat([ids, sliced(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == sliced.generation_config.eos_token_id:
            break
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert run(*arguments) == (0, text + "\n", "")
    assert document(run(*arguments, "--json")[1]) == {"model": str(saved / "mini-opt"), "text": text}
    first, again, other = (run(*arguments, "--do-sample", "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_an_exported_folder_is_a_stock_model_with_the_same_logits(run, saved, tmp_path):
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "thesis.txt").write_text("mine")
    status, out, err = run("export", saved / "llama-whole", "--out", tmp_path / "stock", "--force", "--json")
    assert (status, err) == (0, "") and [path.name for path in tmp_path.iterdir()] == ["stock"]
    assert not (tmp_path / "stock" / "thesis.txt").exists()  # --force replaces the folder whole
    assert document(out) == {"model": str(saved / "llama-whole"), "saved to": str(tmp_path / "stock")}
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock).__module__.startswith("transformers.models.llama")
    sliced, tokenizer = minislice.load(saved / "llama-whole")
    ids = tokenizer("The statement raises an exception.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(stock(input_ids=ids).logits, sliced(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert run("export", saved / "llama-whole", "--out", tmp_path / "half", "--dtype", "bfloat16")[0] == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_help_needs_no_torch():
    code = """
import runpy, sys
try:
    runpy.run_module("minislice", run_name="__main__")
finally:
    print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code, "slice", "--help"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.endswith("False\n")
    groups = ["the paper's options:", "beyond the paper:", "other bases", "texts:", "how it is computed:"]
    places = [result.stdout.index(group) for group in groups]
    assert places == sorted(places)


def test_the_help_of_slice_names_the_defaults_of_its_options():
    (commands,) = (action for action in make_parser()._actions if action.dest == "command")
    asked, defaults = make_parser().parse_args(["slice", "m"]), SlicingOptions()
    told = {
        action.dest: value[1]
        for action in commands.choices["slice"]._actions
        if hasattr(defaults, action.dest) and (value := re.search(r"\(default: ([\w.-]+)\)", action.help))
    }
    assert told.keys() == {"slicing", "multiple", "signal", "adapter", "tolerance", "basis", "orientation", "seed"}
    assert all(getattr(asked, name) is None for name in told.keys() - {"seed"})  # the function has the default
    widths = [options.boundary_widths(192, 5) for options in (defaults, SlicingOptions(slicing=float(told["slicing"])))]
    assert widths[0] == widths[1]
    for name in told.keys() - {"slicing"}:
        default = getattr(defaults, name)
        assert type(default)(told[name]) == default, name


def test_every_command_has_its_file_and_every_script_is_named(capsys):
    for command in COMMANDS:
        assert callable(import_module(f"minislice.command.{command}").run)
    for script, place in SCRIPTS.items():
        assert main([script]) == 2 and f"python {place}" in capsys.readouterr().err
        assert (Path(__file__).parents[1] / place).is_file()


def test_the_text_output_has_a_line_for_every_entry_of_the_json_and_many_numbers_in_short(run, place):
    options = ["slice", "mini-llama", *texts(place), *SIZES, *FEW, "--width", 96, "--quiet"]
    report = document(run(*options, "--json")[1])
    status, out, err = run(*options)
    *lines, size = out.splitlines()
    lines = {name.strip(): value for name, value in (re.split(r"  +", line, maxsplit=1) for line in lines)}
    assert (status, err) == (0, "") and list(lines) == list(report) and "% of the dense model's parameters." in size
    blocks = len(report["widths"]) - 1
    assert lines["widths"] == f"96 x {blocks}, 192" and lines["blocks left out"] == "none"
    assert lines["dense parameters"] == f"{report['dense parameters']:,}"
    assert lines["dense perplexity"] == f"{report['dense perplexity']:.4f}" and float(lines["seconds"]) > 0
    least, greatest = min(report["variance discarded"]), max(report["variance discarded"])
    assert lines["variance discarded"] == f"{least:.3f} to {greatest:.3f}, {blocks + 1} in all"


def test_a_tied_head_stays_tied_and_what_was_done_is_said(run, place, tmp_path):
    arguments = ["slice", "mini-opt", *texts(place), *SIZES, *FEW, "--width", 144, "--quiet", "--json"]
    report = document(run(*arguments, "--out", tmp_path / "memory")[1])
    streamed = document(run(*arguments, "--out", tmp_path / "streamed", "--stream")[1])
    own = document(run(*arguments, "--head", "own")[1])
    assert [said["head"] for said in (report, streamed, own)] == ["tied", "tied", "own"]
    assert report["widths"] == streamed["widths"] == [192, *[144] * 7, 192]
    assert report["sliced parameters"] == streamed["sliced parameters"] < report["dense parameters"]
    assert own["sliced parameters"] > own["dense parameters"]
    for folder in ("memory", "streamed"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["head"] == "tied"


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--width", "96", "--slice-embedding", "--keep-head"], {"slice_embedding": True, "slice_head": False}),
        (["--width", "96", "--keep-embedding", "--slice-head"], {"slice_embedding": False, "slice_head": True}),
        (["--discard", "0.1", "--multiple", "4", "--signal", "raw"], {"discard": 0.1, "multiple": 4, "signal": "raw"}),
        (["--neurons", "0.5", "--drop", "3,2", "--repair"], {"neurons": 0.5, "drop": [2, 3], "repair": True}),
        (["--neurons", "0.5", "--fisher"], {"neurons": 0.5, "fisher": True}),
        (["--neurons", "8, 16", "--head", "fitted"], {"neurons": [8, 16], "head": "fitted"}),
        (["--basis", "random", "--orientation", "random", "--seed", "3"], {"basis": "random", "seed": 3}),
        (["--adapter", "none", "--tolerance", "0.1"], {"adapter": "none", "tolerance": 0.1}),
        (["--width", "192,96,104"], {"width": [192, 96, 104]}),
    ],
)
def test_an_option_of_slice_is_what_it_is_in_python(options, fields):
    asked = vars(SlicingOptions(**given(make_parser().parse_args(["slice", "m", *options]), SlicingOptions)))
    assert fields.items() <= asked.items()


@pytest.mark.parametrize("stream", [False, True])
def test_widths_that_do_not_fit_are_told_before_the_work(stream, run, place, tmp_path, monkeypatch):
    for name in ("before_and_after", "slice_streamed"):  # hours, on a large model
        monkeypatch.setattr(f"minislice.command.slice.{name}", None)
    command = ["slice", "mini-llama", *texts(place), *SIZES, "--quiet", "--out", tmp_path / "out"]
    command += ["--stream"] if stream else []
    assert_refused(run(*command, "--width", "193"), "193", "192")
    assert_refused(run(*command, "--width", "192,96,192"), "got 3 widths", "this model has 9 boundaries (blocks + 1)")
    assert_refused(run(*command, "--width", "96,96", "--keep-head"), "a width for each boundary", "leave --keep-")
    assert_refused(run(*command, "--head", "tied"), "this one's doesn't")


CAN = "it can be one, "


@pytest.mark.parametrize(
    ("model", "options", "said", "config"),
    [
        ("mini-llama", [100], "refuses a hidden size of 100; slice to another width than 100. It says: ", None),
        ("mini-opt", [96], "a sliced 'opt' model can't be exported: transformers ties the width of its", None),
        ("mini-phi", [100], CAN + "PhiForCausalLM with a hidden size of 101", {"hidden_size": 101}),
        ("mini-llama", [96, "--neurons", "0.5"], CAN, {"hidden_size": 96, "intermediate_size": 240}),
        ("mini-llama", [96, "--drop", "2,3"], CAN + "LlamaForCausalLM", {"num_hidden_layers": 3}),
        ("mini-llama", [96, "--neurons", "8,16,8,8"], "MLPs have 8 to 16 neurons, and LlamaForCausalLM would", None),
        ("mini-llama", [96, "--drop", "3"], "blocks [3] are left out without the others of their layers", None),
    ],
)
def test_whether_the_result_can_be_exported_is_said_before_the_work_and_is_so(
    model, options, said, config, run, place, tmp_path
):
    command = ["slice", model, *texts(place), *SIZES, *FEW, "--adapter", "none", "--quiet", "--width", *options]
    status, out, err = run(*command, "--slice-head", "--out", tmp_path / "sliced")
    first, *_ = out.splitlines()
    assert (status, err) == (0, "") and first.startswith("Export to a stock architecture: ") and said in first
    status, _, err = run("export", tmp_path / "sliced", "--out", tmp_path / "stock")
    assert status == (0 if config else 2) and (config or said in err)
    if config:
        assert config.items() <= json.loads((tmp_path / "stock" / "config.json").read_text()).items()


def test_nothing_is_said_of_export_where_there_are_adapters(run, place):
    command = ["slice", "mini-opt", *texts(place), *SIZES, *FEW, "--neurons", "0.5", "--quiet"]
    assert "a sliced 'opt' model can't be exported" in run(*command, "--slicing", "0")[1].splitlines()[0]
    assert "Export" not in run(*command, "--slicing", "0.5")[1]


def test_compress_prints_its_plan_and_saves_what_it_has_planned(run, place, tmp_path):
    command = ["compress", "mini-llama", *texts(place), *SIZES, *FEW, "--quiet"]
    status, plan, err = run(*command, "--plan-only")
    assert (status, err) == (0, "") and "expected cost" in plan and "compressed perplexity" not in plan
    entries = document(run(*command, "--json", "--out", tmp_path / "small")[1])
    assert f"parameters: {entries['compressed parameters']:,} of {entries['dense parameters']:,} " in plan
    model, tokenizer = minislice.load(tmp_path / "small")
    assert minislice.parameters(model) == entries["compressed parameters"] <= 0.8 * entries["dense parameters"]
    assert tokenizer is not None and model.config.neurons == entries["neurons"]
    assert model.config.slicing["perplexity"].startswith(f"{entries['compressed perplexity']:.4f} (test.txt")
    assert model.config.slicing["base_model"] == "mini-llama" and "6 x 48" in model.config.slicing["calibration"]


@pytest.mark.parametrize("more", [[], ["--reconstruct", "--fisher", "--batch-size", "1"]])
def test_compress_leaves_an_ordinary_model_where_that_is_asked_for(more, run, place, tmp_path):
    command = ["compress", "mini-llama", *texts(place), *SIZES, *FEW, "--stock", "--quiet", *more]
    entries = document(run(*command, "--json", "--out", tmp_path / "small")[1])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(model).__module__.startswith("transformers.models.llama")
    assert model.num_parameters() == entries["compressed parameters"] <= 0.8 * entries["dense parameters"]
    assert_refused(run(*command, "--plan-only"), "--stock has no plan")


def test_what_is_not_a_number_is_null_in_json(run, place, monkeypatch):
    arguments = ["--calibration", place / "test.txt", *TINY, "--dtypes", "float32", "--json"]
    monkeypatch.setattr("minislice.invariance.UNROTATED", {"loaded"})
    monkeypatch.setattr("minislice.invariance.STEPS", {"loaded": STEPS["loaded"]})  # slicing would refuse a NaN
    status, out, _ = run("verify", place / "nan", *arguments)
    assert status == 1 and document(out)["measurements"][0]["error"] is None


# ---- which text ----


def halves_share_no_token(run, place, evaluation: str | None = "link.txt") -> None:
    """Slicing with the same file for both is calibrating on its first half, and evaluating on its second.

    So is slicing with a calibration file alone.
    """
    named = texts(place, "test.txt", evaluation)[: 4 if evaluation else 2]
    options = [*named, *SIZES, *FEW, "--width", 96, "--json", "--quiet"]
    report = document(run("slice", "mini-llama", *options)[1])
    model, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    stream = tokenize(load_text(f"{place}/test.txt"), tokenizer)
    first, second = stream[: len(stream) // 2], stream[len(stream) // 2 :]
    assert report["dense perplexity"] == pytest.approx(minislice.perplexity(model, windows(second, 48, 5)), rel=1e-6)
    minislice.slice_model(model, sample(first, 6, 48), width=96)
    assert report["sliced perplexity"] == pytest.approx(minislice.perplexity(model, windows(second, 48, 5)), rel=1e-6)
    assert report["calibration"] == "test.txt, first half, 6 x 48 tokens"
    assert report["evaluation"] == f"{evaluation or 'test.txt'}, second half, 5 x 48 tokens"


@pytest.mark.parametrize("evaluation", ["link.txt", None])
def test_one_file_for_calibration_and_evaluation_is_halved(evaluation, run, place):
    halves_share_no_token(run, place, evaluation)


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("minislice.corpus.text.is_one_file", lambda calibration, evaluation: False),
        ("minislice.corpus.text.halves", lambda stream: (stream, stream)),
    ],
    ids=["the file not recognised", "said but not done"],
)
def test_halving_fails_on_a_planted_mistake(target, version, run, place, monkeypatch):
    monkeypatch.setattr(target, version)
    with pytest.raises(AssertionError):
        halves_share_no_token(run, place)


def test_what_calibration_alone_names_is_measured_on_too(place):
    asked = make_parser().parse_args(["slice", str(place / "beams"), "--calibration", "embedded"])
    assert texts_of(asked).evaluation == "embedded"


def test_streaming_calibrates_on_the_tokens_that_slicing_in_memory_does(run, place, monkeypatch, tmp_path):
    """Of a file that is named for calibration alone: its first half, though nothing is measured on the second."""
    seen = []

    def stop(model, tokens, *rest, **options):
        seen.append(tokens)
        raise ValueError("enough")

    for name, stream in {"slice_model": [], "slice_streamed": ["--stream"]}.items():
        monkeypatch.setattr(f"minislice.command.slice.{name}", stop)
        command = ["slice", "mini-llama", "--calibration", place / "test.txt", *SIZES, *FEW, "--out", tmp_path / "out"]
        assert_refused(run(*command, *stream, "--quiet"), "enough")
    assert torch.equal(*seen)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("mini-opt", "embedded"),
        ("{place}/mute", "random tokens (no tokenizer)"),
        ("{place}/foreign", "random tokens (the tokenizer belongs to another model)"),
        ("{place}/illiterate", "random tokens (100% of the embedded text is unknown to the tokenizer)"),
    ],
)
def test_verify_needs_no_hub_and_says_on_what_it_measures(model, said, run, place):
    arguments = ["verify", model.format(place=place), "--seqlen", 12, "--dtypes", "float64", "--quiet"]
    status, out, err = run(*arguments)
    assert (status, err) == (0, "") and out.startswith(f"On {said}, 4 x 12 tokens:\n")


@pytest.mark.parametrize(("command", "source"), [("eval", "wikitext2"), ("slice", "alpaca"), ("slice", None)])
def test_a_hub_that_cannot_be_reached_is_told_at_once_with_the_alternatives(command, source, run, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("minislice.command.inputs.load", lambda *arguments, **options: 1 / 0)  # hours, of a large model
    began = time.perf_counter()
    named = [] if source is None else ["--evaluation", source]
    assert_refused(run(command, place / "foreign", *named), "127.0.0.1:9", "file", "'embedded'", "HF_HUB_OFFLINE=1")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "command",
    [
        ["verify", *TINY, "--dtypes", "float32", "--calibration", "embedded"],
        ["slice", "--stream", "--out", "s", "--calibration", "embedded"],
        ["eval", *FEW, "--evaluation", "embedded"],
        ["generate", "--prompt", "The", "--max-new-tokens", "2"],
        ["cost", "--rounds", "1", "--length", "4"],
    ],
    ids=lambda command: command[0],
)
def test_code_of_a_model_runs_only_if_it_is_trusted(command, run, place, tmp_path, monkeypatch):
    monkeypatch.setitem(minislice.families.FAMILIES, "own", minislice.families.FAMILIES["llama"])
    monkeypatch.chdir(tmp_path)
    command = [command[0], place / "code", *command[1:], "--quiet"]
    assert_refused(run(*command), "pass the argument `--trust-remote-code`")
    if command[0] in ("verify", "generate", "cost"):  # eval loads as generate does; a streamed layer isn't whole
        assert run(*command, "--trust-remote-code")[0] == 0


# ---- what can't be done is one line (which values an option takes: test_errors) ----

FOUND = texts(Path("{place}"))
OUT = ["--out", "{place}/new"]
BAD = {
    "model: none": (["eval", "{place}/absent"], ["{place}/absent", "no such folder"]),
    "model: a file": (["eval", "{place}/test.txt"], ["test.txt is a file"]),
    "model: an empty folder": (["eval", "{place}/no model"], ["config.json doesn't exist"]),
    "model: not on the hub, no text named": (["slice", "absent-model"], ["'absent-model' is no folder", "mini-opt"]),
    "model: no tokenizer": (["eval", "{place}/mute", *FOUND[2:]], ["no tokenizer"]),
    "model: weights cut off": (["slice", "{place}/cut", *FOUND], ["cut/model.safetensors", "damaged or cut off"]),
    "model: sliced already": (["slice", "{saved}/mini-llama", *FOUND, *SIZES], ["sliced already", "trained model"]),
    "model: verify sliced": (["verify", "{saved}/mini-opt", *FOUND[:2], *SIZES], ["sliced already"]),
    "tokenizer of another model": (["slice", "{place}/foreign", *FOUND], ["120 tokens", "another model"]),
    "tokenizer of another model, prompt": (["generate", "{place}/foreign", "--prompt", "The"], ["another model"]),
    "text: none": (["eval", "mini-opt", "--evaluation", "{place}/absent.txt"], ["absent.txt", "embedded", "exists"]),
    "text: a folder": (["eval", "mini-opt", "--evaluation", "{place}"], ["{place}", "exists"]),
    "text: blank": (["verify", "mini-opt", "--calibration", "{place}/blank.txt"], ["blank.txt has no text"]),
    "text: not utf-8": (["eval", "mini-opt", "--evaluation", "{place}/latin1.txt"], ["latin1.txt", "utf-8"]),
    "text: broken": (["eval", "mini-opt", "--evaluation", "{place}/broken.json"], ["broken.json as json"]),
    "text: a surrogate": (["eval", "mini-opt", "--evaluation", "{place}/surrogate.json"], ["'\\ud800'"]),
    "text: too short": (["slice", "mini-opt", *texts(Path("{place}"), "short.txt")], ["128 sequences of 256 tokens"]),
    "text: offline": (["eval", "mini-opt", "--evaluation", "wikitext2"], ["wikitext2", "hub", "embedded"]),
    "seqlen: beyond the table": (["eval", "mini-opt", *FOUND[2:], "--seqlen", "600"], ["600 tokens", "512 positions"]),
    "seqlen: nothing to predict": (["eval", "mini-opt", *FOUND[2:], "--seqlen", "1"], ["seqlen", "at least 2"]),
    "calibration: too little": (["slice", "mini-opt", *FOUND, *TINY], ["24 calibration tokens", "192 dimensions"]),
    "size: not a number": (["compress", "mini-opt", *FOUND, *SIZES, "--size", "nan"], ["size", "nan"]),
    "seed: too large": (["demo", "--seed", str(2**64)], ["seed", str(2**64)]),
    "slicing: NaN": (["slice", "absent", "--slicing", "nan"], ["slicing", "nan"]),
    "slicing: two widths": (["slice", "absent", "--slicing", "0.1", "--width", "8"], ["one of slicing, width"]),
    "slicing: nothing left": (["slice", "mini-opt", *FOUND, *SIZES, "--slicing", "0.99"], ["0.99 of 192"]),
    "out: occupied": (["slice", "mini-opt", *FOUND, "--out", "{place}/occupied"], ["occupied", "force"]),
    "out: a file": (["slice", "mini-opt", *FOUND, "--out", "{place}/short.txt", "--force"], ["is a file"]),
    "export: dense": (["export", "mini-llama", *OUT], ["mini-llama isn't", "none --slice-head"]),
    "export: with adapters": (["export", "{saved}/mini-llama", *OUT], ["residual adapters", "none --slice-head"]),
    "export: a family that can't": (["export", "{saved}/opt-whole", *OUT], ["'opt'", "can't"]),
    "picture: another's": (["demo", "--picture", "{place}/test.txt"], ["test.txt exists", "another file"]),
    "dtypes": (["verify", "mini-opt", *FOUND[:2], *SIZES, "--dtypes", "float32,int8"], ["int8", "float64, float32"]),
    "device: not built for": (["eval", "mini-opt", "--device", "hpu"], ["device 'hpu'"]),
    "device: nonsense": (["eval", "mini-opt", "--device", "nonsense"], ["device 'nonsense'"]),
    "device: empty": (["demo", "--device", ""], ["device ''"]),
    "device: too many": (["demo", "--device", "cuda:99"], ["device 'cuda:99'"]),
    "prompt: empty": (["generate", "mini-llama", "--prompt", ""], ["prompt is empty"]),
    "prompt: no text": (["generate", "mini-llama", "--prompt", "a\udcff"], ["no valid text", "surrogates"]),
    "prompt: too long an answer": (
        ["generate", "mini-opt", "--prompt", "a", "--max-new-tokens", "600"],
        ["600 new tokens", "512"],
    ),
    "weights: NaN": (["eval", "{place}/nan", *FOUND[2:], *FEW], ["{place}/nan isn't a number", "--dtype"]),
    "weights: NaN, prompt": (["generate", "{place}/nan", "--prompt", "The"], ["have a NaN or an infinity"]),
    "weights: NaN, sampling": (["generate", "{place}/nan", "--prompt", "The", "--do-sample"], ["have a NaN"]),
    "generation_config: no beams": (
        ["generate", "{place}/beams", "--prompt", "The"],
        ["{place}/beams", "generation_config.json"],
    ),
    "cost: a form": (["cost", "opt-125m", "--adapter", "round"], ["adapter must be one of"]),
    "cost: a level": (["cost", "opt-125m", "--slicing", "1.5"], ["slicing must be a number"]),
    "cost: several devices": (["cost", "opt-125m", "--device", "auto"], ["one device"]),
    "cost: too long": (["cost", "mini-llama", "--length", "10000000"], ["512 positions", "--length"]),
    "cost: too many": (
        ["cost", "mini-llama", "--rounds", "1", "--length", "1", "--batch-size", str(10**10)],
        ["memory"],
    ),
    "tasks: no folder": (
        ["zeroshot", "mini-llama", "--tasks", "piqa", "--tasks-from", "absent"],
        ["absent/piqa.jsonl"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_changes_nothing(case, run, place, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)  # offline, with nothing fetched before
    arguments, fragments = ([part.format(place=place, saved=saved) for part in parts] for parts in BAD[case])
    before = state(place)
    assert_refused(run(*arguments, "--quiet"), *fragments)
    assert state(place) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none_is_one_line(run):
    for command in (["demo"], ["eval", "mini-opt"], ["generate", "mini-opt", "--prompt", "a"]):
        assert_refused(run(*command, "--device", "cuda"), "device 'cuda'")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_line(file, run, place, tmp_path):
    folder = shutil.copytree(place / "foreign", tmp_path / "model")
    for content in ["", "{", "[]", '{"added_tokens": [5]}']:
        (folder / file).write_text(content)
        assert_refused(run("eval", folder, "--evaluation", place / "test.txt", "--quiet"), "tokenizer")


@pytest.mark.parametrize("fault", [ValueError, OSError, torch.OutOfMemoryError])
def test_an_error_of_many_lines_is_told_in_one(fault, run, monkeypatch):
    def fail(*arguments, **options):
        raise fault("the first line,\n\n    and the second\n")

    monkeypatch.setattr("minislice.command.inputs.load", fail)
    assert_refused(run("eval", "mini-opt", "--json"), "the first line, and the second")


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nonesuch"], ["eval"], ["eval", "mini-opt", "--seqlen", "0"], ["slice", "m", "--slicing", "x"]),
        *(["slice", "mini-opt", "--out", ""], ["slice", "mini-opt", "--evaluation", ""], ["eval", ""]),
        *(["verify", "mini-opt", "--calibration", " "], ["export", "mini-opt", "--out", ""]),
        *(["verify", "m", "--dtypes", ""], ["compare", "m", "--out", "x", "--sizes", "most"]),
        *(["eval", "m", "--eval-samples", "0"], ["compare", "m", "--out", "x", "--sizes", ","]),
        *(["slice", "m", "--keep-head", "--slice-head"], ["export", "m"], ["slice", "m", "--dtype", "int8"]),
        *(["slice", "m", "--width", "8,x"], ["cost", "m", "--slicing", "a lot"]),
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_exit_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "") and "error: " in captured.err.splitlines()[-1]


def test_an_interrupt_is_exit_status_130_without_a_traceback(run, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("minislice.command.inputs.load", interrupt)
    assert run("eval", "mini-opt") == (130, "", "minislice: interrupted\n")


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capfd):
    """As `minislice families | head -1` closes the pipe."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(["families"]) == 141
    assert capfd.readouterr().err == ""
