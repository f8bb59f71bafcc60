"""The command `minislice`: its exit status, one JSON document on stdout, one line on stderr, and what it writes."""

import json
import os
import pydoc_data.topics
import re
import shutil
import subprocess
import sys
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
from minislice.command import cli, inputs, parser
from minislice.corpus import text
from minislice.corpus.embedded import data_folder
from minislice.invariance import STEPS
from minislice.options import SlicingOptions

SIZES = ["--samples", "6", "--seqlen", "48"]
FEW = ["--eval-samples", "5"]
TINY = ["--samples", "1", "--seqlen", "24"]
SLICED = {  # what is asked for, on the command line and in Python
    "mini-llama": (["--slicing", "0.4"], {"slicing": 0.4}),
    "mini-opt": (
        ["--width", "100", "--adapter", "full", "--slice-head"],
        {"width": 100, "adapter": "full", "slice_head": True},
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of texts and models, good and bad; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("place")
    topics = list(pydoc_data.topics.topics.values())
    for name, content in {
        "calibration.txt": "\n\n".join(topics[0:30:2]),
        "test.txt": "\n\n".join(topics[1:30:2]),
        "short.txt": "A few words.",
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "link.txt").symlink_to(folder / "test.txt")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.txt").write_text("mine")
    model, tokenizer = minislice.load("mini-opt")
    model.model.decoder.layers[0].fc1.weight.data[0, 0] = torch.nan
    tiny = Recipe("llama").model().float()  # of 120 tokens: the tokenizer belongs to another model
    for name, saved in {"foreign": tiny, "mute": tiny, "illiterate": tiny, "nan": model}.items():
        saved.save_pretrained(folder / name)
        if name in ("foreign", "nan"):
            tokenizer.save_pretrained(folder / name)
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder / "illiterate")
    shutil.copytree(data_folder() / "mini-llama", folder / "beams")
    (folder / "beams" / "generation_config.json").write_text('{"num_beams": 0}')
    shutil.copytree(folder / "foreign", folder / "torn")
    (folder / "torn" / "tokenizer.json").write_text("[]")
    return folder


def texts(place: Path, calibration="calibration.txt", evaluation="test.txt") -> list[str]:
    return ["--calibration", f"{place}/{calibration}", "--evaluation", f"{place}/{evaluation}"]


@pytest.fixture(scope="module")
def saved(place, tmp_path_factory) -> Path:
    """Models that `minislice slice --out` wrote, each with what it printed beside it."""
    folder = tmp_path_factory.mktemp("saved")
    whole = ["--slicing", "0.5", "--adapter", "none", "--slice-head"]
    runs = {name: [name, *options] for name, (options, _) in SLICED.items()} | {"whole": ["mini-llama", *whole]}
    for name, arguments in runs.items():
        command = ["slice", *arguments, *texts(place), *SIZES, *FEW, "--quiet", "--json", "--out", f"{folder}/{name}"]
        with pytest.MonkeyPatch.context() as patch, open(folder / f"{name}.json", "w") as report:
            patch.setattr("sys.stdout", report)
            assert cli.main(command) == 0
    return folder


# What every command does


def test_demo_measures_every_step_and_shows_text_a_picture_and_the_next_door(run, monkeypatch, tmp_path):
    monkeypatch.setattr("minislice.command.demo.EMBEDDED", ["mini-llama"])
    monkeypatch.chdir(tmp_path)
    rows = document(run("demo", "--samples", 2, "--json", "--quiet")[1])
    steps = ["dense", "fused", "rotated", "rotated per block", "rotated by PCA"]
    assert [row["step"] for row in rows] == steps + [f"sliced 25%, {form}" for form in ("full", "low-rank", "none")]
    for row in rows:
        sliced = row["step"].startswith("sliced")
        assert (row["error"] > 1e-2) == sliced and (row["width"] < 192) == sliced
    assert not list(tmp_path.iterdir())
    picture = tmp_path / parser.PICTURE
    picture.write_text("of an earlier demo")
    status, out, err = run("demo", "--samples", 2, "--quiet")
    assert (status, err) == (0, "") and out.startswith("\nmini-llama\n") and picture.stat().st_size > 10_000
    told = ["dense writes:  The statement", "sliced writes: The statement", "can grow", "Learn:", "Use:", "Teach:"]
    assert all(words in out for words in told) and picture.name in out


def test_verify_measures_every_step_and_has_exit_status_1_where_the_invariance_fails(run, place, monkeypatch):
    arguments = ["verify", "mini-opt", "--calibration", f"{place}/test.txt", *TINY, "--quiet"]
    status, out, err = run(*arguments, "--dtypes", "float64,float32", "--json")
    found = document(out)
    assert (status, err, found["passed"]) == (0, "", True)
    assert [(m["dtype"], m["step"]) for m in found["measurements"]] == [
        (dtype, step) for dtype in ("float64", "float32") for step in STEPS
    ]
    assert all(m["passed"] and m["error"] <= m["tolerance"] for m in found["measurements"])
    perplexities = [m["perplexity"] for m in found["measurements"]]
    assert perplexities == pytest.approx([found["reference_perplexity"]] * len(perplexities), rel=1e-4)
    right = resolve_name("minislice.rotation.fold_reader")
    monkeypatch.setattr("minislice.rotation.fold_reader", mistakes.transposed(right))
    status, out, _ = run(*arguments, "--dtypes", "float64")
    assert status == 1 and "does NOT have the invariance" in out


@pytest.mark.parametrize("name", SLICED)
def test_slice_reports_what_the_library_computes_and_eval_finds_in_the_folder(name, saved, place, run):
    report = document((saved / f"{name}.json").read_text())
    model, tokenizer = minislice.load(name, dtype="float32", device="cpu")
    calibration = text.sample(text.tokenize(text.load_text(f"{place}/calibration.txt"), tokenizer), 6, 48)
    evaluation = text.windows(text.tokenize(text.load_text(f"{place}/test.txt"), tokenizer), 48, 5)
    expected = {"model": name, "saved to": str(saved / name), "dense parameters": minislice.parameters(model)}
    expected["dense perplexity"] = pytest.approx(minislice.perplexity(model, evaluation), rel=1e-6)
    minislice.slice_model(model, calibration, **SLICED[name][1])
    report.pop("seconds")
    assert report == expected | {
        "sliced perplexity": pytest.approx(minislice.perplexity(model, evaluation), rel=1e-6),
        "sliced parameters": minislice.parameters(model),
        "widths": model.slicing.widths,
        "trained width": 192,
        "variance discarded": pytest.approx(model.slicing.discarded, abs=1e-9),
        "adapter": model.slicing.options.adapter,
        "adapter ranks": model.slicing.ranks,
        "head": model.slicing.options.head,
        "neurons": model.slicing.neurons,
        "blocks left out": [],
        "calibration": "calibration.txt, 6 x 48 tokens",
        "evaluation": "test.txt, 5 x 48 tokens",
    }
    asked = ["--evaluation", f"{place}/test.txt", "--seqlen", 48, *FEW, "--json"]
    for folder, kind in ((saved / name, "sliced"), (name, "dense")):
        status, out, err = run("eval", folder, *asked)
        assert status == 0 and "perplexity" in err  # progress goes to stderr alone, and is gone at the end
        assert not err.rpartition("\r")[2].strip()
        measured = document(out)
        assert measured.pop("seconds") > 0 and measured == {
            "model": str(folder),
            "perplexity": pytest.approx(report[f"{kind} perplexity"], rel=1e-6),
            "parameters": report[f"{kind} parameters"],
            "evaluation": report["evaluation"],
        }
    record = json.loads((saved / name / "config.json").read_text())["slicing"]
    assert record["base_model"] == name and record["calibration"] == report["calibration"]
    assert record["perplexity"].startswith(f"{report['sliced perplexity']:.4f} (test.txt")


def test_generate_of_the_saved_folder_goes_on_as_the_sliced_model_does(run, saved):
    arguments = ["generate", saved / "mini-opt", "--prompt", "The statement", "--max-new-tokens", 8, "--quiet"]
    sliced, tokenizer = minislice.load(saved / "mini-opt")
    ids = tokenizer("The statement", return_tensors="pt")["input_ids"]
    ids = sliced.generate(ids, max_new_tokens=8, do_sample=False)
    written = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert run(*arguments) == (0, written + "\n", "")
    assert document(run(*arguments, "--json")[1]) == {"model": str(saved / "mini-opt"), "text": written}
    first, again, other = (run(*arguments, "--do-sample", "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_an_exported_folder_is_a_stock_model_with_the_same_logits(run, saved, tmp_path):
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "thesis.txt").write_text("mine")
    status, out, err = run("export", saved / "whole", "--out", tmp_path / "stock", "--force", "--json")
    assert (status, err) == (0, "") and not (tmp_path / "stock" / "thesis.txt").exists()  # replaced whole
    assert document(out) == {"model": str(saved / "whole"), "saved to": str(tmp_path / "stock")}
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock).__module__.startswith("transformers.models.llama")
    ids, (sliced, _) = torch.arange(9)[None], minislice.load(saved / "whole")
    torch.testing.assert_close(stock(ids).logits, sliced(ids).logits, rtol=1e-4, atol=1e-4)
    assert run("export", saved / "whole", "--out", tmp_path / "half", "--dtype", "bfloat16")[0] == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


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


@pytest.mark.parametrize("more", [[], ["--reconstruct", "--fisher", "--batch-size", "1"]])
def test_compress_leaves_an_ordinary_model_where_that_is_asked_for(more, run, place, tmp_path):
    command = ["compress", "mini-llama", *texts(place), *SIZES, *FEW, "--stock", "--quiet", *more]
    entries = document(run(*command, "--json", "--out", tmp_path / "small")[1])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(model).__module__.startswith("transformers.models.llama")
    assert model.num_parameters() == entries["compressed parameters"] <= 0.8 * entries["dense parameters"]


# What is printed


def test_help_needs_no_torch_and_has_the_papers_options_first():
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
    asked, defaults = parser.make_parser().parse_args(["slice", "m"]), SlicingOptions()
    given = inputs.given(asked, SlicingOptions)
    assert all(value == getattr(defaults, name) for name, value in given.items())  # the function has the defaults
    told = {}
    for name, (_, _, meaning) in (parser.PAPER | parser.BASES).items():
        if value := re.search(r"\(default: ([\d.]+|[a-z-]+)\)", meaning):
            told[name.strip("-")] = value[1]
    assert told.pop("slicing") == "0.25"
    assert SlicingOptions(slicing=0.25).boundary_widths(192, 5) == defaults.boundary_widths(192, 5)
    assert told.keys() == {"multiple", "signal", "adapter", "tolerance", "basis", "orientation"}
    assert all(type(value)(told[name]) == value for name, value in vars(defaults).items() if name in told)


def test_every_command_has_its_file_and_every_script_is_named(capsys):
    for command in parser.COMMANDS:
        assert callable(import_module(f"minislice.command.{command}").run)
    for script, file in cli.SCRIPTS.items():
        assert cli.main([script]) == 2 and f"python {file}" in capsys.readouterr().err
        assert (Path(__file__).parents[1] / file).is_file()


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


def test_what_is_not_a_number_is_null_in_json(run, place, monkeypatch):
    arguments = ["--calibration", place / "test.txt", *TINY, "--dtypes", "float32", "--json"]
    monkeypatch.setattr("minislice.invariance.UNROTATED", {"loaded"})
    monkeypatch.setattr("minislice.invariance.STEPS", {"loaded": STEPS["loaded"]})  # slicing would refuse a NaN
    status, out, _ = run("verify", place / "nan", *arguments)
    assert status == 1 and document(out)["measurements"][0]["error"] is None


# What is asked for


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--width", "96", "--slice-embedding", "--keep-head"], {"slice_embedding": True, "slice_head": False}),
        (["--width", "96", "--keep-embedding", "--slice-head"], {"slice_embedding": False, "slice_head": True}),
        (["--discard", "0.1", "--multiple", "4", "--signal", "raw"], {"discard": 0.1, "multiple": 4, "signal": "raw"}),
        (["--neurons", "0.5", "--drop", "3,2", "--repair"], {"neurons": 0.5, "drop": [2, 3], "repair": True}),
        (
            ["--neurons", "8, 16", "--head", "fitted", "--fisher"],
            {"neurons": [8, 16], "head": "fitted", "fisher": True},
        ),
        (["--basis", "random", "--orientation", "random", "--seed", "3"], {"basis": "random", "seed": 3}),
        (["--adapter", "none", "--tolerance", "0.1"], {"adapter": "none", "tolerance": 0.1}),
        (["--width", "192,96,104"], {"width": [192, 96, 104]}),
    ],
)
def test_an_option_of_slice_is_what_it_is_in_python(options, fields):
    asked = parser.make_parser().parse_args(["slice", "m", *options])
    assert fields.items() <= vars(SlicingOptions(**inputs.given(asked, SlicingOptions))).items()


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_widths_that_do_not_fit_are_told_before_the_work(stream, run, place, tmp_path, monkeypatch):
    for name in ("before_and_after", "slice_streamed"):  # hours, on a large model
        monkeypatch.setattr(f"minislice.command.slice.{name}", None)
    command = ["slice", "mini-llama", *texts(place), *SIZES, *stream, "--quiet", "--out", tmp_path / "out"]
    assert_refused(run(*command, "--width", "193"), "193", "192")
    assert_refused(run(*command, "--width", "96,96", "--keep-head"), "a width for each boundary", "leave --keep-")


@pytest.mark.parametrize(
    ("model", "options", "said", "config"),
    [
        ("mini-llama", [100], "refuses a hidden size of 100; slice to another width than 100. It says: ", None),
        ("mini-opt", [96], "a sliced 'opt' model can't be exported: transformers ties the width of its", None),
        ("mini-phi", [100], "it can be one, PhiForCausalLM with a hidden size of 101", {"hidden_size": 101}),
        ("mini-llama", [96, "--neurons", "0.5", "--drop", "2,3"], "it can be one, ", {"intermediate_size": 240}),
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


# Which text


def halves_share_no_token(run, place, evaluation: str | None = "link.txt") -> None:
    """A file named for both texts, or for calibration alone, calibrates with its first half; its second is measured."""
    named = texts(place, "test.txt", evaluation)[: 4 if evaluation else 2]
    options = [*named, *SIZES, *FEW, "--width", 96, "--json", "--quiet"]
    report = document(run("slice", "mini-llama", *options)[1])
    model, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    stream = text.tokenize(text.load_text(f"{place}/test.txt"), tokenizer)
    first, second = stream[: len(stream) // 2], text.windows(stream[len(stream) // 2 :], 48, 5)
    assert report["dense perplexity"] == pytest.approx(minislice.perplexity(model, second), rel=1e-6)
    minislice.slice_model(model, text.sample(first, 6, 48), width=96)
    assert report["sliced perplexity"] == pytest.approx(minislice.perplexity(model, second), rel=1e-6)
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


def test_a_hub_that_cannot_be_reached_is_told_before_a_model_is_loaded(run, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("minislice.command.inputs.load", None)  # hours, of a large model
    assert_refused(run("slice", place / "foreign"), "127.0.0.1:9", "file", "'embedded'", "HF_HUB_OFFLINE=1")


# What can't be done is one line. Which values an option takes: test_errors; which files can be read: test_text

FOUND = texts(Path("{place}"))
COMPARE = ["compare", "mini-llama", *SIZES, *FEW, "--sizes", "0.9"]
BAD = {
    "model: not on the hub, no text named": (["slice", "absent-model"], ["'absent-model' is no folder", "mini-opt"]),
    "model: no tokenizer": (["eval", "{place}/mute", *FOUND[2:]], ["no tokenizer"]),
    "model: sliced already": (["slice", "{saved}/mini-llama", *FOUND, *SIZES], ["sliced already", "trained model"]),
    "tokenizer: damaged": (["eval", "{place}/torn", *FOUND[2:]], ["tokenizer"]),
    "tokenizer of another model": (["slice", "{place}/foreign", *FOUND], ["120 tokens", "another model"]),
    "tokenizer of another model, prompt": (["generate", "{place}/foreign", "--prompt", "The"], ["another model"]),
    "text: none": (["eval", "mini-opt", "--evaluation", "{place}/absent.txt"], ["absent.txt", "embedded", "exists"]),
    "text: too short": (["slice", "mini-opt", *texts(Path("{place}"), "short.txt")], ["128 sequences of 256 tokens"]),
    "text: offline": (["eval", "mini-opt", "--evaluation", "wikitext2"], ["wikitext2", "hub", "embedded"]),
    "calibration: too little": (["slice", "mini-opt", *FOUND, *TINY], ["24 calibration tokens", "192 dimensions"]),
    "seed: too large": (["demo", "--seed", str(2**64)], ["seed", str(2**64)]),
    "slicing: NaN": (["slice", "absent", "--slicing", "nan"], ["slicing", "nan"]),
    "slicing: two widths": (["slice", "absent", "--slicing", "0.1", "--width", "8"], ["one of slicing, width"]),
    "stream: no folder": (["slice", "mini-opt", "--stream"], ["--out"]),
    "compress: no plan": (["compress", "mini-opt", "--stock", "--plan-only"], ["--stock has no plan"]),
    "export: dense": (["export", "mini-llama", "--out", "{place}/new"], ["mini-llama isn't", "none --slice-head"]),
    "picture: another's": (["demo", "--picture", "{place}/test.txt"], ["test.txt exists", "another file"]),
    "device: nonsense": (["eval", "mini-opt", "--device", "nonsense"], ["device 'nonsense'"]),
    "device: not there": (["demo", "--device", "cuda:99"], ["device 'cuda:99'"]),
    "prompt: empty": (["generate", "mini-llama", "--prompt", ""], ["prompt is empty"]),
    "prompt: no text": (["generate", "mini-llama", "--prompt", "a\udcff"], ["no valid text", "surrogates"]),
    "prompt: long answer": (["generate", "mini-opt", "--prompt", "a", "--max-new-tokens", "600"], ["600 new", "512"]),
    "weights: NaN": (["eval", "{place}/nan", *FOUND[2:], *FEW], ["{place}/nan isn't a number", "--dtype"]),
    "weights: NaN, prompt": (["generate", "{place}/nan", "--prompt", "The"], ["have a NaN or an infinity"]),
    "generation_config: no beams": (["generate", "{place}/beams", "--prompt", "The"], ["generation_config.json"]),
    "cost: several devices": (["cost", "opt-125m", "--device", "auto"], ["one device"]),
    "cost: too long": (["cost", "mini-llama", "--length", "10000000"], ["512 positions", "--length"]),
    "cost: too many": (["cost", "mini-llama", "--rounds", "1", "--length", "1", "--batch-size", "9" * 10], ["memory"]),
    "compare: a variant": ([*COMPARE, "--out", "{place}/new", "--variants", "depth,prayer"], ["one of slicegpt"]),
    "compare: a size": ([*COMPARE, "--out", "{place}/new", "--sizes", "1.1"], ["--sizes must be", "1.1"]),
    "compare: occupied": ([*COMPARE, "--out", "{place}/occupied"], ["isn't empty and has no results.jsonl"]),
    "compare: a file": ([*COMPARE, "--out", "{place}/short.txt"], ["short.txt is a file"]),
    "compare: seen text": (
        [*COMPARE, *FOUND, "--second-evaluation", "{place}/calibration.txt", "--out", "{place}/new"],
        ["the second text calibrates, too"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_changes_nothing(case, run, place, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)  # offline, with nothing fetched before
    arguments, fragments = ([part.format(place=place, saved=saved) for part in parts] for parts in BAD[case])
    state = lambda: {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in place.rglob("*")}  # noqa: E731
    before = state()
    assert_refused(run(*arguments, "--quiet"), *fragments)
    assert state() == before


@pytest.mark.parametrize("fault", [ValueError, OSError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_an_error_of_many_lines_is_told_in_one_and_an_interrupt_too(fault, run, monkeypatch):
    def fail(*arguments, **options):
        raise fault("the first line,\n\n    and the second\n")

    monkeypatch.setattr("minislice.command.inputs.load", fail)
    result = run("eval", "mini-opt", "--json")
    if fault is KeyboardInterrupt:
        assert result == (130, "", "minislice: interrupted\n")
    else:
        assert_refused(result, "the first line, and the second")


@pytest.mark.parametrize(
    "line",
    [
        *("", "nonesuch", "eval", "eval mini-opt --seqlen 0", "slice m --slicing x", "slice m --dtype int8"),
        *("slice m --out=", "eval m --evaluation=", "verify m --dtypes=", "compare m --out x --sizes ,"),
        *("export m", "slice m --keep-head --slice-head", "slice m --width 8,x", "cost m --slicing much"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_exit_status_2(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(line.split())
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.out) == (2, "") and "error: " in captured.err.splitlines()[-1]


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capfd):
    """As `minislice families | head -1` closes the pipe."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert cli.main(["families"]) == 141
    assert capfd.readouterr().err == ""
