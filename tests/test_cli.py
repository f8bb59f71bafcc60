"""The command `minislice`: its exit status, one JSON document on stdout, one line on stderr, and what it writes."""

import json
import pydoc_data.topics
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
from models import Recipe
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import minislice
from minislice.command.cli import FILES, SCRIPTS, main
from minislice.command.parser import COMMANDS
from minislice.corpus.embedded import EMBEDDED, data_folder
from minislice.corpus.text import load_text, sample, tokenize, windows
from minislice.invariance import STEPS

SIZES = ["--samples", "6", "--seqlen", "48"]
FEW = ["--eval-samples", "5"]
TINY = ["--samples", "1", "--seqlen", "24"]
OPTIONS = {"mini-llama": ["--slicing", "0.4"], "mini-opt": ["--width", "100", "--adapter", "full", "--slice-head"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of texts and models, good and bad; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("place")
    topics = list(pydoc_data.topics.topics.values())
    (folder / "calibration.txt").write_text("\n\n".join(topics[0:30:2]), encoding="utf-8")
    (folder / "test.txt").write_text("\n\n".join(topics[1:30:2]), encoding="utf-8")
    (folder / "link.txt").symlink_to(folder / "test.txt")
    (folder / "short.txt").write_text("A few words.")
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n\n\t")
    (folder / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "broken.json").write_text('["a",')
    (folder / "surrogate.json").write_text('["a \\ud800 b"]')
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.txt").write_text("mine")
    (folder / "no model").mkdir()
    _, tokenizer = minislice.load("mini-llama")
    tiny = Recipe("llama").model().float()  # of 120 tokens: the tokenizer of mini-llama belongs to another model
    for name in ("foreign", "mute", "cut", "unreadable", "illiterate"):
        tiny.save_pretrained(folder / name)
        if name not in ("mute", "illiterate"):
            tokenizer.save_pretrained(folder / name)
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder / "illiterate")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    (folder / "unreadable" / "tokenizer.json").write_text("{")
    model, _ = minislice.load("mini-opt")
    model.model.decoder.layers[0].fc1.weight.data[0, 0] = torch.nan
    model.save_pretrained(folder / "nan")
    tokenizer.save_pretrained(folder / "nan")
    for name, file, content in (
        ("beams", "generation_config.json", {"num_beams": 0}),
        ("labels", "config.json", {**tiny.config.to_dict(), "num_labels": 10**9}),
    ):
        shutil.copytree(data_folder() / "mini-llama", folder / name)
        (folder / name / file).write_text(json.dumps(content))
    shutil.copytree(data_folder() / "mini-llama", folder / "code")
    config = json.loads((folder / "code" / "config.json").read_text())
    places = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnForCausalLM"}
    (folder / "code" / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": places}))
    (folder / "code" / "code.py").write_text(OWN_CODE)
    return folder


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def saved(place, tmp_path_factory) -> Path:
    """Models that `minislice slice --out` wrote, each with what it printed beside it."""
    folder = tmp_path_factory.mktemp("saved")
    whole = ["--slicing", "0.5", "--adapter", "none", "--slice-head"]
    runs = {name: [name, *options] for name, options in OPTIONS.items()}
    runs |= {"llama-whole": ["mini-llama", *whole], "opt-whole": ["mini-opt", *whole]}
    for name, arguments in runs.items():
        texts = ["--calibration", f"{place}/calibration.txt", "--evaluation", f"{place}/test.txt"]
        command = ["slice", *arguments, *texts, *SIZES, *FEW, "--quiet", "--json", "--out", f"{folder}/{name}"]
        with pytest.MonkeyPatch.context() as patch, open(folder / f"{name}.json", "w") as report:
            patch.setattr("sys.stdout", report)
            assert main(command) == 0
    return folder


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run a command: its status, standard output and standard error."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)  # offline, with nothing fetched before

    def run(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return run


def document(out: str):
    """The one JSON document that standard output is; NaN and Infinity are no JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert out.endswith("\n") and out.count("\n") == 1
    return json.loads(out, parse_constant=refuse)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below the folder, with what would change if it were written to."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def assert_refused(result: tuple[int, str, str], *fragments: str) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr that has every fragment."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("minislice: ") and err.endswith("\n") and err.count("\n") == 1, err
    for fragment in fragments:
        assert fragment in err


def texts(place: Path, calibration="calibration.txt", evaluation="test.txt") -> list[str]:
    return ["--calibration", f"{place}/{calibration}", "--evaluation", f"{place}/{evaluation}"]


# ---- every command does what it says ----


def test_demo_prints_every_step_of_every_embedded_model(run, monkeypatch, tmp_path):
    monkeypatch.setattr("minislice.command.demo.SEQLEN", 128)
    monkeypatch.chdir(tmp_path)
    status, out, err = run("demo", "--samples", 4, "--json", "--quiet")
    rows = document(out)
    assert (status, err) == (0, "") and not list(tmp_path.iterdir())
    steps = ["dense", "fused", "rotated", "rotated per block", "rotated by PCA"]
    steps += [f"sliced 25%, {form}" for form in ("full", "low-rank", "none")]
    assert [(row["model"], row["step"]) for row in rows] == [(m, s) for m in sorted(EMBEDDED) for s in steps]
    for row in rows:
        sliced = row["step"].startswith("sliced")
        assert (row["error"] > 1e-2) == sliced and (row["width"] < 192) == sliced
        assert row["text"].startswith("The statement") == (row["step"] in ("dense", "sliced 25%, low-rank"))


@pytest.mark.slow
def test_demo_shows_text_a_picture_and_the_next_door(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("demo", "--samples", 4, "--quiet")
    assert (
        status == 0 and out.startswith("\nmini-llama\n") and (tmp_path / "minislice-demo.png").stat().st_size > 10_000
    )
    told = ["dense writes:", "sliced writes:", "'low-rank' computes the same", "can grow", "Learn:", "Use:", "Teach:"]
    assert all(words in out for words in told) and "minislice-demo.png" in out


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
    status, out, err = run(*arguments, "--dtypes", "float32", "--quiet")
    assert (status, err) == (0, "") and out.endswith("has the invariance.\n")


def test_verify_has_exit_status_1_where_the_invariance_fails(run, place, monkeypatch):
    right = resolve_name("minislice.rotation.fold_reader")
    monkeypatch.setattr("minislice.rotation.fold_reader", mistakes.transposed(right))
    arguments = ["verify", "mini-opt", "--calibration", f"{place}/test.txt", *TINY, "--dtypes", "float64", "--quiet"]
    status, out, err = run(*arguments, "--json")
    found = document(out)
    assert (status, err) == (1, "") and found["passed"] is False
    assert {m["step"] for m in found["measurements"] if not m["passed"]} == {"rotated", "rotated per block"}
    status, out, _ = run(*arguments)
    assert status == 1 and "does NOT have the invariance" in out


def test_slice_reports_what_the_library_computes(saved, place):
    for name, options in {
        "mini-llama": {"slicing": 0.4},
        "mini-opt": {"width": 100, "adapter": "full", "slice_head": True},
    }.items():
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


@pytest.mark.parametrize("model", OPTIONS)
def test_eval_of_the_saved_folder_agrees_with_what_slice_reported(model, run, saved, place):
    report = json.loads((saved / f"{model}.json").read_text())
    arguments = ["--evaluation", f"{place}/test.txt", "--seqlen", 48, *FEW, "--quiet", "--json"]
    for name, kind in ((saved / model, "sliced"), (model, "dense")):
        status, out, err = run("eval", name, *arguments)
        assert (status, err) == (0, "")
        assert document(out) == {
            "model": str(name),
            "perplexity": pytest.approx(report[f"{kind} perplexity"], rel=1e-6),
            "parameters": report[f"{kind} parameters"],
            "evaluation": report["evaluation"],
            "seconds": pytest.approx(5, abs=5),
        }


@pytest.mark.parametrize("model", OPTIONS)
def test_the_saved_folder_says_how_it_was_made(model, saved):
    report = json.loads((saved / f"{model}.json").read_text())
    record = json.loads((saved / model / "config.json").read_text())["slicing"]
    assert record["base_model"] == model and record["calibration"] == report["calibration"]
    assert record["perplexity"].startswith(f"{report['sliced perplexity']:.4f} (test.txt")


@pytest.mark.parametrize("model", OPTIONS)
def test_generate_of_the_saved_folder_goes_on_as_the_sliced_model_does(model, run, saved):
    arguments = ["generate", saved / model, "--prompt", "The statement", "--max-new-tokens", 8, "--quiet"]
    status, out, err = run(*arguments, "--json")
    assert (status, err) == (0, "")
    sliced, tokenizer = minislice.load(saved / model)
    ids = tokenizer("The statement", return_tensors="pt")["input_ids"]
    for _ in range(8):  # greedy, without transformers' generation
        with torch.no_grad():
            ids = torch.cat([ids, sliced(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == sliced.generation_config.eos_token_id:
            break
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert document(out) == {"model": str(saved / model), "text": text}
    assert run(*arguments) == (0, text + "\n", "")


def test_sampling_repeats_with_its_seed(run):
    arguments = ["generate", "mini-opt", "--prompt", "def", "--max-new-tokens", 12, "--do-sample", "--quiet"]
    first, again, other = (run(*arguments, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_an_exported_folder_is_a_stock_model_with_the_same_logits(run, saved, tmp_path):
    status, out, err = run("export", saved / "llama-whole", "--out", tmp_path / "stock", "--json")
    assert (status, err) == (0, "")
    assert document(out) == {"model": str(saved / "llama-whole"), "saved to": str(tmp_path / "stock")}
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock).__module__.startswith("transformers.models.llama")
    sliced, tokenizer = minislice.load(saved / "llama-whole")
    ids = tokenizer("The statement raises an exception.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(stock(input_ids=ids).logits, sliced(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert run("generate", tmp_path / "stock", "--prompt", "The", "--max-new-tokens", 2, "--quiet")[0] == 0


def test_export_writes_the_dtype_that_it_is_given(run, saved, tmp_path):
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
    for arguments in (["--help"], ["slice", "--help"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
        assert (result.returncode, result.stderr) == (0, "") and result.stdout.endswith("False\n")
    groups = ["the paper's options:", "beyond the paper:", "other bases", "texts:", "how it is computed:"]
    places = [result.stdout.index(group) for group in groups]
    assert places == sorted(places)


def test_every_command_has_its_file_and_every_script_is_named(capsys):
    for command in COMMANDS:
        assert callable(import_module(f"minislice.command.{FILES.get(command, command)}").run)
    for script, place in SCRIPTS.items():
        assert main([script]) == 2 and f"python {place}" in capsys.readouterr().err
        assert (Path(__file__).parents[1] / place).is_file()


def test_the_text_output_has_a_line_for_every_entry_of_the_json(run, place):
    arguments = ["eval", "mini-opt", "--evaluation", place / "test.txt", "--seqlen", 48, *FEW, "--quiet"]
    entries = document(run(*arguments, "--json")[1])
    lines = run(*arguments)[1].splitlines()
    assert [line.split("  ")[0] for line in lines] == list(entries)
    assert lines[2].endswith(f"{entries['parameters']:,}") and f"{entries['perplexity']:.4f}" in lines[1]


def test_many_numbers_are_printed_in_short(run, place):
    options = [*texts(place), *SIZES, *FEW, "--width", 96, "--quiet"]
    report = document(run("slice", "mini-llama", *options, "--json")[1])
    status, out, err = run("slice", "mini-llama", *options)
    lines = dict(line.split("  ", 1) for line in out.splitlines()[:-1])
    assert (status, err) == (0, "") and list(lines) == list(report)
    blocks = len(report["widths"]) - 1
    assert lines["widths"].split() == ["96", "x", f"{blocks},", "192"]
    assert all(len(line) < 120 for line in out.splitlines())
    assert lines["blocks left out"].strip() == "none"
    assert float(lines["seconds"]) > 0
    least, greatest = min(report["variance discarded"]), max(report["variance discarded"])
    assert lines["variance discarded"].strip() == f"{least:.3f} to {greatest:.3f}, {blocks + 1} in all"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--width", 96], "% of the dense model's parameters."),
        (["--width", 191, "--head", "own"], "is not smaller: {sliced:,} parameters against {dense:,}, because"),
        (["--slicing", 0, "--adapter", "none", "--slice-head"], "which shared the embedding's matrix, has"),
        (["--width", 191], "because residual adapters take"),  # beside the tied head
    ],
)
def test_the_size_is_said_and_why_it_is_not_smaller(options, said, run, place):
    arguments = ["slice", "mini-opt", *texts(place), *SIZES, *FEW, *options, "--quiet"]
    report = document(run(*arguments, "--json")[1])
    last = run(*arguments)[1].splitlines()[-1]
    assert said.format(sliced=report["sliced parameters"], dense=report["dense parameters"]) in last
    assert ("not smaller" in last) == (report["sliced parameters"] >= report["dense parameters"])


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
    ("options", "widths"),
    [
        (["--width", 96, "--keep-embedding"], [192, *[96] * 7, 192]),
        (["--width", 96, "--slice-embedding", "--keep-head"], [*[96] * 8, 192]),
        (["--width", 96, "--keep-embedding", "--slice-head", "--adapter", "none"], [192, *[96] * 8]),
        (["--width", "192,96,96,104,104,96,96,100,192"], [192, 96, 96, 104, 104, 96, 96, 100, 192]),
    ],
)
def test_the_ends_and_every_width_can_be_named(options, widths, run, place):
    status, out, _ = run("slice", "mini-llama", *texts(place), *SIZES, *FEW, *options, "--quiet", "--json")
    assert status == 0 and document(out)["widths"] == widths


@pytest.mark.parametrize("stream", [False, True])
def test_widths_that_do_not_fit_are_told_before_the_work(stream, run, place, tmp_path, monkeypatch):
    for name in ("before_and_after", "slice_model", "slice_streamed"):
        monkeypatch.setattr(f"minislice.command.slice.{name}", None)
    command = ["slice", "mini-llama", *texts(place), *SIZES, "--quiet", "--out", tmp_path / "out"]
    command += ["--stream"] if stream else []
    assert_refused(run(*command, "--width", "192,96,192"), "got 3 widths", "this model has 9 boundaries (blocks + 1)")
    assert_refused(run(*command, "--width", "96,96", "--keep-head"), "a width for each boundary", "leave --keep-")
    assert_refused(run(*command, "--head", "tied"), "this one's doesn't")


@pytest.mark.parametrize(
    ("model", "width", "said"),
    [
        ("mini-llama", 96, "it can be one, LlamaForCausalLM with a hidden size of 96"),
        ("mini-llama", 100, "refuses a hidden size of 100; slice to a width of 96 or 102, which it takes"),
        ("mini-opt", 96, "a sliced 'opt' model can't be exported: transformers ties the width of its attention"),
        ("mini-phi", 100, "it can be one, PhiForCausalLM with a hidden size of 101"),
    ],
)
def test_whether_the_result_can_be_exported_is_said_before_the_work_and_is_so(model, width, said, run, place, tmp_path):
    command = ["slice", model, *texts(place), *SIZES, *FEW, "--width", width, "--adapter", "none", "--quiet"]
    assert "Export" not in run(*command)[1]
    status, out, err = run(*command, "--slice-head", "--out", tmp_path / "sliced")
    first, *_ = out.splitlines()
    assert (status, err) == (0, "") and first.startswith("Export to a stock architecture: ") and said in first
    status, _, err = run("export", tmp_path / "sliced", "--out", tmp_path / "stock")
    if "it can be one" in said:
        assert status == 0 and json.loads((tmp_path / "stock" / "config.json").read_text())["hidden_size"] in (96, 101)
    else:
        assert status == 2 and said in err
    document(run(*command, "--slice-head", "--json")[1])  # and nothing else


@pytest.mark.parametrize(
    ("options", "said", "config"),
    [
        (["--neurons", "0.5"], "it can be one, LlamaForCausalLM", {"hidden_size": 96, "intermediate_size": 240}),
        (["--drop", "2,3"], "it can be one, LlamaForCausalLM", {"num_hidden_layers": 3}),
        (["--neurons", "8,16,8,8"], "MLPs have 8 to 16 neurons, and LlamaForCausalLM would have 16 in each", None),
        (["--drop", "3"], "blocks [3] are left out without the others of their layers", None),
    ],
)
def test_it_is_said_of_fewer_neurons_and_blocks_too(options, said, config, run, place, tmp_path):
    command = ["slice", "mini-llama", *texts(place), *SIZES, *FEW, "--width", 96, "--adapter", "none", "--slice-head"]
    status, out, err = run(*command, *options, "--quiet", "--out", tmp_path / "sliced")
    assert (status, err) == (0, "") and said in out.splitlines()[0]
    status, _, err = run("export", tmp_path / "sliced", "--out", tmp_path / "stock")
    assert status == (0 if config else 2) and (config or said in err)
    if config:
        assert config.items() <= json.loads((tmp_path / "stock" / "config.json").read_text()).items()


def test_it_is_said_of_a_whole_signal_too(run, place, tmp_path):
    command = ["slice", "mini-opt", *texts(place), *SIZES, *FEW, "--neurons", "0.5", "--quiet"]
    assert "a sliced 'opt' model can't be exported" in run(*command, "--slicing", "0")[1].splitlines()[0]
    assert "Export" not in run(*command, "--slicing", "0.5")[1]


def test_compress_prints_its_plan_and_saves_what_it_has_planned(run, place, tmp_path):
    command = ["compress", "mini-llama", *texts(place), "--samples", 12, "--seqlen", 48, *FEW, "--quiet"]
    status, plan, err = run(*command, "--plan-only")
    assert (status, err) == (0, "") and "expected cost" in plan and "compressed perplexity" not in plan
    entries = document(run(*command, "--json", "--out", tmp_path / "small")[1])
    assert f"parameters: {entries['compressed parameters']:,} of {entries['dense parameters']:,} " in plan
    model, tokenizer = minislice.load(tmp_path / "small")
    assert minislice.parameters(model) == entries["compressed parameters"] <= 0.8 * entries["dense parameters"]
    assert tokenizer is not None and model.config.neurons == entries["neurons"]
    assert model.config.slicing["perplexity"].startswith(f"{entries['compressed perplexity']:.4f} (test.txt")
    assert model.config.slicing["base_model"] == "mini-llama" and "12 x 48" in model.config.slicing["calibration"]


def test_compress_leaves_an_ordinary_model_where_that_is_asked_for(run, place, tmp_path):
    command = ["compress", "mini-llama", *texts(place), *SIZES, *FEW, "--stock", "--quiet"]
    entries = document(run(*command, "--json", "--out", tmp_path / "small")[1])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(model).__module__.startswith("transformers.models.llama")
    assert model.num_parameters() == entries["compressed parameters"] <= 0.8 * entries["dense parameters"]
    assert_refused(run(*command, "--plan-only"), "--stock deletes neurons alone, without a plan")


# ---- stdout under --json ----


def test_what_is_not_a_number_is_null_in_json(run, place, monkeypatch):
    arguments = ["--calibration", place / "test.txt", *TINY, "--dtypes", "float32", "--json"]
    monkeypatch.setattr("minislice.invariance.UNROTATED", {"loaded"})
    monkeypatch.setattr("minislice.invariance.STEPS", {"loaded": STEPS["loaded"]})  # slicing would refuse a NaN
    status, out, _ = run("verify", place / "nan", *arguments)
    assert status == 1 and document(out)["measurements"][0]["error"] is None


def test_progress_goes_to_stderr_alone(run, place):
    status, out, err = run("eval", "mini-opt", "--evaluation", place / "test.txt", "--seqlen", 48, *FEW, "--json")
    assert status == 0 and document(out) and "perplexity" in err
    assert not err.rpartition("\r")[2].strip()  # the bar is gone at the end


# ---- one file for both ----


def halves_share_no_token(run, place, evaluation: str | None = "test.txt") -> None:
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


@pytest.mark.parametrize("evaluation", ["test.txt", "link.txt", None])
def test_one_file_for_calibration_and_evaluation_is_halved(evaluation, run, place):
    halves_share_no_token(run, place, evaluation)


def test_what_calibration_alone_names_is_measured_on_too(run, place):
    command = ["slice", place / "beams", "--calibration", "embedded", *SIZES, *FEW, "--width", 96, "--json", "--quiet"]
    status, out, _ = run(*command)
    assert status == 0 and document(out)["evaluation"] == "embedded, 5 x 48 tokens"


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


def test_slices_help_says_that_one_file_is_halved(capsys):
    with pytest.raises(SystemExit):
        main(["slice", "--help"])
    assert "its first half calibrates and its second is measured on" in " ".join(capsys.readouterr().out.split())


# ---- without a hub ----


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
    status, out, err = run(*arguments, "--json")
    assert (status, err) == (0, "") and document(out)["tokens"] == f"{said}, 4 x 12 tokens"
    assert run(*arguments)[1].startswith(f"On {said}, 4 x 12 tokens:\n")


@pytest.mark.parametrize("command", ["eval", "slice"])
@pytest.mark.parametrize("source", ["wikitext2", "alpaca", None])
def test_a_hub_that_cannot_be_reached_is_told_at_once_with_the_alternatives(command, source, run, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("minislice.command.inputs.load", lambda *arguments, **options: 1 / 0)  # hours, of a large model
    began = time.perf_counter()
    named = [] if source is None else ["--evaluation", source]
    assert_refused(run(command, place / "foreign", *named), "127.0.0.1:9", "file", "'embedded'", "HF_HUB_OFFLINE=1")
    assert time.perf_counter() - began < 5


# ---- a model that comes with its own code ----


@pytest.mark.parametrize(
    "command",
    [
        *(
            ["verify", *TINY, "--dtypes", "float64"],
            ["slice", *SIZES, *FEW],
            ["slice", *SIZES, "--stream", "--out", "s"],
        ),
        *(
            ["eval", *FEW],
            ["generate", "--prompt", "The", "--max-new-tokens", "2"],
            ["cost", "--rounds", "1", "--length", "4"],
        ),
    ],
    ids=lambda command: " ".join(command[:1]),
)
def test_code_of_a_model_runs_only_if_it_is_trusted(command, run, place, tmp_path, monkeypatch):
    monkeypatch.setitem(minislice.families.FAMILIES, "own", minislice.families.FAMILIES["llama"])
    monkeypatch.chdir(tmp_path)
    needs = {"slice": ["--calibration"], "eval": ["--evaluation"], "verify": ["--calibration"]}.get(command[0], [])
    given = [command[0], place / "code", *command[1:], *needs, *(["embedded"] if needs else []), "--quiet"]
    assert_refused(run(*given), "pass the argument `--trust-remote-code`")
    if "--stream" not in command:
        assert run(*given, "--trust-remote-code")[0] == 0


# ---- what can't be done is one line ----

FOUND = texts(Path("{place}"))
BAD = {
    "model: none": (["eval", "{place}/absent"], ["{place}/absent", "no such folder"]),
    "model: a file": (["eval", "{place}/test.txt"], ["test.txt is a file"]),
    "model: an empty folder": (["eval", "{place}/no model"], ["config.json doesn't exist"]),
    "model: not on the hub": (["eval", "absent-model", *FOUND[2:]], ["'absent-model'", "mini-opt", "hub"]),
    "model: not on the hub, no text named": (["slice", "absent-model"], ["'absent-model' is no folder"]),
    "model: a thousand million labels": (["eval", "{place}/labels", *FOUND[2:]], ["labels/config.json: num_labels"]),
    "model: no tokenizer": (["eval", "{place}/mute", *FOUND[2:]], ["no tokenizer"]),
    "model: tokenizer damaged": (["eval", "{place}/unreadable", *FOUND[2:]], ["tokenizer", "unreadable"]),
    "model: weights cut off": (["slice", "{place}/cut", *FOUND], ["cut/model.safetensors", "damaged or cut off"]),
    "model: sliced already": (["slice", "{saved}/mini-llama", *FOUND, *SIZES], ["sliced already", "trained model"]),
    "model: verify sliced": (["verify", "{saved}/mini-opt", *FOUND[:2], *SIZES], ["sliced already"]),
    "tokenizer of another model": (["slice", "{place}/foreign", *FOUND], ["120 tokens", "another model"]),
    "tokenizer of another model, prompt": (["generate", "{place}/foreign", "--prompt", "The"], ["another model"]),
    "text: none": (["eval", "mini-opt", "--evaluation", "{place}/absent.txt"], ["absent.txt", "embedded", "exists"]),
    "text: a folder": (["eval", "mini-opt", "--evaluation", "{place}"], ["{place}", "exists"]),
    "text: empty": (["eval", "mini-opt", "--evaluation", "{place}/empty.txt"], ["empty.txt has no text"]),
    "text: blank": (["verify", "mini-opt", "--calibration", "{place}/blank.txt"], ["blank.txt has no text"]),
    "text: not utf-8": (["eval", "mini-opt", "--evaluation", "{place}/latin1.txt"], ["latin1.txt", "utf-8"]),
    "text: broken": (["eval", "mini-opt", "--evaluation", "{place}/broken.json"], ["broken.json as json"]),
    "text: too short": (["slice", "mini-opt", *texts(Path("{place}"), "short.txt")], ["128 sequences of 256 tokens"]),
    "text: offline": (["eval", "mini-opt", "--evaluation", "wikitext2"], ["wikitext2", "hub", "embedded"]),
    "seqlen: beyond the table": (["eval", "mini-opt", *FOUND[2:], "--seqlen", "600"], ["600 tokens", "512 positions"]),
    "seqlen: nothing to predict": (["eval", "mini-opt", *FOUND[2:], "--seqlen", "1"], ["seqlen", "at least 2"]),
    "size: more than all": (["compress", "mini-opt", *FOUND, *SIZES, "--stock", "--size", "1.5"], ["size", "1.5"]),
    "size: not a number": (["compress", "mini-opt", *FOUND, *SIZES, "--size", "nan"], ["size", "nan"]),
    "seed: too large": (["demo", "--seed", str(2**64)], ["seed", str(2**64)]),
    "neurons: negative": (["slice", "absent", "--neurons", "-1"], ["neurons", "-1"]),
    "slicing: all": (["slice", "mini-opt", *FOUND, "--slicing", "1.0"], ["slicing", "1.0"]),
    "slicing: negative": (["slice", "absent", "--slicing", "-0.5"], ["slicing", "-0.5"]),
    "slicing: NaN": (["slice", "absent", "--slicing", "nan"], ["slicing", "nan"]),
    "slicing: nothing left": (["slice", "mini-opt", *FOUND, *SIZES, "--slicing", "0.99"], ["0.99 of 192"]),
    "width: too much": (["slice", "mini-opt", *FOUND, *SIZES, "--width", "193"], ["192", "193"]),
    "discard: all": (["slice", "absent", "--discard", "1"], ["discard", "1.0"]),
    "tolerance": (["slice", "absent", "--tolerance", "2"], ["tolerance", "2.0"]),
    "discard without adapters": (
        ["slice", "mini-opt", *FOUND, *SIZES, "--discard", "0.1", "--adapter", "none"],
        ["adapter='none'", "width"],
    ),
    "out: occupied": (["slice", "mini-opt", *FOUND, "--out", "{place}/occupied"], ["occupied", "force"]),
    "out: a file": (["slice", "mini-opt", *FOUND, "--out", "{place}/short.txt", "--force"], ["is a file"]),
    "export: occupied": (["export", "{saved}/llama-whole", "--out", "{place}/occupied"], ["occupied", "force"]),
    "export: dense": (["export", "mini-llama", "--out", "{place}/new"], ["mini-llama isn't", "none --slice-head"]),
    "export: with adapters": (
        ["export", "{saved}/mini-llama", "--out", "{place}/new"],
        ["residual adapters", "--adapter none --slice-head"],
    ),
    "export: a family that can't": (["export", "{saved}/opt-whole", "--out", "{place}/new"], ["'opt'", "can't"]),
    "dtypes": (["verify", "mini-opt", *FOUND[:2], *SIZES, "--dtypes", "float32,int8"], ["int8", "float64, float32"]),
    "device: not built for": (["eval", "mini-opt", "--device", "hpu"], ["device 'hpu'"]),
    "device: nonsense": (["eval", "mini-opt", "--device", "nonsense"], ["device 'nonsense'"]),
    "device: meta": (["eval", "mini-opt", "--device", "meta"], ["device 'meta'"]),
    "device: empty": (["demo", "--device", ""], ["device ''"]),
    "device: too many": (["demo", "--device", "cuda:99"], ["device 'cuda:99'"]),
    "prompt: empty": (["generate", "mini-llama", "--prompt", ""], ["prompt is empty"]),
    "prompt: no text": (["generate", "mini-llama", "--prompt", "a\udcff"], ["no valid text", "surrogates"]),
    "prompt: an answer without end": (
        ["generate", "mini-llama", "--prompt", "a", "--max-new-tokens", str(10**12)],
        ["1000000000000 new tokens", "512"],
    ),
    "text: a surrogate": (
        ["eval", "mini-opt", "--evaluation", "{place}/surrogate.json"],
        ["surrogate.json", "'\\ud800'"],
    ),
    "weights: NaN": (
        ["eval", "{place}/nan", *FOUND[2:], "--seqlen", "48", *FEW],
        ["{place}/nan isn't a number", "--dtype"],
    ),
    "weights: NaN, prompt": (["generate", "{place}/nan", "--prompt", "The"], ["have a NaN or an infinity"]),
    "weights: NaN, sampling": (["generate", "{place}/nan", "--prompt", "The", "--do-sample"], ["have a NaN"]),
    "generation_config: no beams": (
        ["generate", "{place}/beams", "--prompt", "The"],
        ["{place}/beams", "generation_config.json"],
    ),
    "cost: too long": (["cost", "mini-llama", "--length", "10000000"], ["512 positions", "--length"]),
    "cost: too many": (
        ["cost", "mini-llama", "--rounds", "1", "--length", "1", "--batch-size", str(10**10)],
        ["memory"],
    ),
    "prompt: too long an answer": (
        ["generate", "mini-opt", "--prompt", "a", "--max-new-tokens", "600"],
        ["600 new tokens", "512"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_changes_nothing(case, run, place, saved):
    arguments, fragments = ([part.format(place=place, saved=saved) for part in parts] for parts in BAD[case])
    before = state(place)
    assert_refused(run(*arguments, "--quiet"), *fragments)
    assert state(place) == before
    assert_refused(run(*arguments, "--quiet", "--json"), *fragments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none_is_one_line(run):
    for command in (["demo"], ["eval", "mini-opt"], ["generate", "mini-opt", "--prompt", "a"]):
        assert_refused(run(*command, "--device", "cuda"), "device 'cuda'")


def test_a_width_that_does_not_fit_is_told_before_anything_is_measured(run, place, monkeypatch):
    monkeypatch.setattr(
        "minislice.command.slice.before_and_after", lambda *arguments, **options: 1 / 0
    )  # hours, on a large model
    assert_refused(run("slice", "mini-opt", *texts(place), *SIZES, "--width", 193), "193")


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"added_tokens": []}', '{"added_tokens": [5]}'])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_line(file, content, run, place, tmp_path):
    folder = shutil.copytree(place / "foreign", tmp_path / "model")
    (folder / file).write_text(content)
    said = "can't load the tokenizer" if file == "tokenizer.json" else "tokenizer"  # little of the other one is needed
    assert_refused(run("eval", folder, "--evaluation", place / "test.txt", "--quiet"), said)


@pytest.mark.parametrize("fault", [ValueError, OSError, torch.OutOfMemoryError])
def test_an_error_of_many_lines_is_told_in_one(fault, run, monkeypatch):
    def fail(*arguments, **options):
        raise fault("the first line,\n\n    and the second\n")

    monkeypatch.setattr("minislice.command.inputs.load", fail)
    assert_refused(run("eval", "mini-opt"), "the first line, and the second")


def test_force_replaces_the_folder_whole(run, place, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    arguments = [*texts(place), *SIZES, *FEW, "--quiet", "--out", tmp_path / "out", "--force"]
    assert run("slice", "mini-llama", *arguments)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "thesis.txt").exists()
    assert isinstance(minislice.load(tmp_path / "out")[0], minislice.SlicedForCausalLM)


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nonesuch"], ["eval"], ["eval", "mini-opt", "--seqlen", "0"], ["slice", "m", "--slicing", "x"]),
        *(["slice", "mini-opt", "--out", ""], ["slice", "mini-opt", "--evaluation", ""], ["eval", ""]),
        *(["verify", "mini-opt", "--calibration", " "], ["export", "mini-opt", "--out", ""]),
        *(["verify", "m", "--dtypes", ""], ["compare", "m", "--out", "x", "--sizes", "most"]),
        *(["eval", "m", "--eval-samples", "0"], ["compare", "m", "--out", "x", "--sizes", ","]),
        *(["slice", "m", "--slicing", "0.1", "--width", "8"], ["export", "m"], ["slice", "m", "--dtype", "int8"]),
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
