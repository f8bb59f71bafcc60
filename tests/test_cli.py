"""The command `minislice`: its exit status, one JSON document on stdout, one line on stderr, and what it writes."""

import json
import os
import pydoc_data.topics
import re
import shutil
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from commands import assert_refused, document
from models import Recipe
from transformers import AutoModelForCausalLM

import minislice
from minislice.beyond.variants import VARIANTS
from minislice.command import cli, demo, inputs, parser
from minislice.command.output import print_result
from minislice.corpus import text
from minislice.invariance import STEPS
from minislice.options import SlicingOptions
from minislice.teaching.small import small_model

SIZES = ["--samples", "6", "--seqlen", "48"]
FEW = ["--eval-samples", "5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of texts and small models, good and bad; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("place")
    topics = list(pydoc_data.topics.topics.values())
    (folder / "calibration.txt").write_text("\n\n".join(topics[0:30:2]), encoding="utf-8")
    (folder / "test.txt").write_text("\n\n".join(topics[1:30:2]), encoding="utf-8")
    _, tokenizer = minislice.load("mini-opt")
    fields = {"vocab_size": len(tokenizer), "intermediate_size": 512, "tie_word_embeddings": True}
    small = small_model("llama", **fields).float()
    broken = small_model("llama", **fields).float()
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    few_tokens = Recipe("llama").model().float()  # the tokenizer belongs to another model
    for name, model in {"small": small, "nan": broken, "foreign": few_tokens, "mute": few_tokens}.items():
        model.save_pretrained(folder / name)
        if name != "mute":
            tokenizer.save_pretrained(folder / name)
    return folder


def texts(place: Path | str, calibration="calibration.txt", evaluation="test.txt") -> list[str]:
    return ["--calibration", f"{place}/{calibration}", "--evaluation", f"{place}/{evaluation}"]


@pytest.fixture(scope="module")
def saved(place, tmp_path_factory) -> Path:
    """A model that `minislice slice --out` wrote, and beside it what that printed."""
    folder = tmp_path_factory.mktemp("saved")
    options = ["--width", "16", "--adapter", "none", "--slice-head", *SIZES, *FEW, "--quiet", "--json"]
    with pytest.MonkeyPatch.context() as patch, open(folder / "report.json", "w") as report:
        patch.setattr("sys.stdout", report)
        assert cli.main(["slice", f"{place}/small", *texts(place), *options, "--out", f"{folder}/sliced"]) == 0
    return folder


def test_demo_measures_every_step_and_shows_text_a_picture_and_the_next_door(run, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "EMBEDDED", ["mini-llama"])
    monkeypatch.chdir(tmp_path)
    rows = document(run("demo", "--samples", 2, "--json", "--quiet")[1])
    steps = ["dense", "fused", "rotated", "rotated per block", "rotated by PCA"]
    assert [row["step"] for row in rows] == steps + [f"sliced 25%, {form}" for form in ("full", "low-rank", "none")]
    for row in rows:
        sliced = row["step"].startswith("sliced")
        assert (row["error"] > 1e-2) == sliced and (row["width"] < 192) == sliced
    picture = tmp_path / parser.PICTURE
    assert not picture.exists()
    monkeypatch.setattr(demo, "measured_steps", lambda *_: rows)
    status, out, err = run("demo", "--samples", 2, "--quiet")
    assert (status, err) == (0, "") and out.startswith("\nmini-llama\n") and picture.stat().st_size > 10_000
    told = ["dense writes: The statement", "low-rank writes: The statement", "can grow", "Learn:", "Use:", "Teach:"]
    assert all(words in out for words in (*told, picture.name))


def test_verify_measures_every_step_and_has_exit_status_1_where_the_invariance_fails(run, place, monkeypatch):
    arguments = ["verify", place / "small", "--calibration", place / "test.txt", "--samples", 1, "--seqlen", 24]
    arguments += ["--dtypes", "float64", "--quiet"]
    status, out, err = run(*arguments, "--json")
    found = document(out)
    assert (status, err, found["passed"]) == (0, "", True) and found["tokens"] == "test.txt, 1 x 24 tokens"
    assert [(m["dtype"], m["step"], m["passed"]) for m in found["measurements"]] == [
        ("float64", step, True) for step in STEPS
    ]
    monkeypatch.setattr("minislice.rotation.fold_reader", lambda linear, Q: None)
    status, out, _ = run(*arguments)
    assert status == 1 and "does NOT have the invariance" in out
    assert [step for step in STEPS if re.search(f" {step}  .*FAILED", out)] == ["rotated", "rotated per block"]


def test_slice_reports_what_the_library_computes_and_eval_finds_in_the_folder(saved, place, run, tmp_path):
    report = document((saved / "report.json").read_text())
    model, tokenizer = minislice.load(place / "small")
    calibration = text.sample(text.tokenize(text.load_text(f"{place}/calibration.txt"), tokenizer), 6, 48)
    evaluation = text.windows(text.tokenize(text.load_text(f"{place}/test.txt"), tokenizer), 48, 5)
    expected = {"dense perplexity": minislice.perplexity(model, evaluation)}
    minislice.slice_model(model, calibration, width=16, adapter="none", slice_head=True)
    expected["sliced perplexity"] = minislice.perplexity(model, evaluation)
    assert {name: report[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert report["sliced parameters"] == minislice.parameters(model) < report["dense parameters"]
    assert report["widths"] == [16] * 5 and report["variance discarded"] == pytest.approx(model.slicing.discarded)
    assert report["calibration"] == "calibration.txt, 6 x 48 tokens"
    asked = ["--evaluation", place / "test.txt", "--seqlen", 48, *FEW, "--json"]
    status, out, err = run("eval", saved / "sliced", *asked)
    assert status == 0 and "perplexity" in err and not err.rpartition("\r")[2].strip()  # the progress bar is gone
    measured = document(out)
    assert measured["calibration"] == report["calibration"], "which may be among what is measured on"
    assert measured["perplexity"] == pytest.approx(report["sliced perplexity"], rel=1e-6)
    assert measured["evaluation"] == report["evaluation"] == "test.txt, 5 x 48 tokens"
    config = json.loads((saved / "sliced" / "config.json").read_text())
    record = config["slicing"]
    assert record["base_model"] == "small" and record["calibration"] == report["calibration"]
    assert record["perplexity"].startswith(f"{report['sliced perplexity']:.4f} (test.txt")
    shutil.copytree(saved / "sliced", tmp_path / "mini")
    record["base_model"] = "mini-llama"
    (tmp_path / "mini" / "config.json").write_text(json.dumps(config))
    measured = document(run("eval", tmp_path / "mini", "--eval-samples", 1, "--json")[1])
    assert measured["evaluation"] == "embedded, 1 x 256 tokens", "as of the embedded model"


def test_generate_of_the_saved_folder_goes_on_as_the_sliced_model_does(run, saved):
    arguments = ["generate", saved / "sliced", "--prompt", "The statement", "--max-new-tokens", 8, "--quiet"]
    sliced, tokenizer = minislice.load(saved / "sliced")
    ids = tokenizer("The statement", return_tensors="pt")["input_ids"]
    ids = sliced.generate(ids, max_new_tokens=8, do_sample=False)
    written = tokenizer.decode(ids[0], skip_special_tokens=True)
    assert run(*arguments) == (0, written + "\n", "")
    assert document(run(*arguments, "--json")[1]) == {"model": str(saved / "sliced"), "text": written}
    first, again, other = (run(*arguments, "--do-sample", "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_compress_prints_its_plan_and_saves_what_it_has_planned_or_an_ordinary_model(run, place, tmp_path):
    command = ["compress", place / "small", *texts(place), *SIZES, *FEW, "--quiet"]
    status, plan, err = run(*command, "--plan-only")
    assert (status, err) == (0, "") and "expected cost" in plan and "compressed perplexity" not in plan
    entries = document(run(*command, "--json", "--out", tmp_path / "out")[1])
    assert f"parameters: {entries['compressed parameters']:,} of {entries['dense parameters']:,} " in plan
    model, tokenizer = minislice.load(tmp_path / "out")
    assert minislice.parameters(model) == entries["compressed parameters"] <= 0.8 * entries["dense parameters"]
    assert tokenizer is not None and model.config.neurons == entries["neurons"]
    assert model.config.slicing["perplexity"].startswith(f"{entries['compressed perplexity']:.4f} (test.txt")
    command += ["--stock", "--reconstruct", "--fisher", "--batch-size", 1]
    entries = document(run(*command, "--json", "--out", tmp_path / "stock")[1])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(model).__module__.startswith("transformers.models.llama")
    assert model.num_parameters() == entries["compressed parameters"] <= 0.8 * entries["dense parameters"]


def test_help_names_the_variants_and_the_defaults_that_the_functions_have():
    assert all(re.search(rf"\b{name}\b", parser.EPILOGS["compare"]) for name in VARIANTS)
    defaults = vars(SlicingOptions()) | {"slicing": 0.25}
    helps = {name.strip("-"): meaning for name, (_, _, meaning) in (parser.PAPER | parser.BASES).items()}
    found = {name: re.search(r"\(default: ([\d.]+|[a-z-]+)\)", meaning) for name, meaning in helps.items()}
    told = {name: type(defaults[name])(match[1]) for name, match in found.items() if match}
    assert len(told) == 7 and told.items() <= defaults.items()


def test_a_result_is_one_json_document_or_a_line_for_each_entry(capsys):
    """NaN is no JSON; many numbers are told in short."""
    result = {"parameters": 12345, "perplexity": 31.41592, "widths": [96, 96, 192], "blocks left out": []}
    result["variance discarded"] = [0.5, 0.25, 0.125, 1 / 3, 0.2]
    print_result(Namespace(json=True), result | {"error": float("nan"), "losses": [float("inf")]})
    assert document(capsys.readouterr().out) == result | {"error": None, "losses": [None]}
    print_result(Namespace(json=False), result, note="A note.")
    *lines, note = capsys.readouterr().out.splitlines()
    assert note == "A note." and [re.split(r"  +", line) for line in lines] == [
        ["parameters", "12,345"],
        ["perplexity", "31.4159"],
        ["widths", "96 x 2, 192"],
        ["blocks left out", "none"],
        ["variance discarded", "0.125 to 0.500, 5 in all"],
    ]


OPTIONS = {
    "--discard 0.1 --slice-embedding --slice-head": {"discard": 0.1, "slice_embedding": True, "slice_head": True},
    "--width 192,96 --keep-embedding": {"width": [192, 96], "slice_embedding": False},
    "--width 96 --neurons 0.5 --repair": {"width": 96, "neurons": 0.5, "repair": True},
    "--width 96 --keep-head --neurons 8,16": {"width": 96, "slice_head": False, "neurons": [8, 16]},
    "--width 96 --drop 3,2": {"width": 96, "drop": [2, 3]},
}


def test_an_option_of_slice_is_what_it_is_in_python():
    for line, fields in OPTIONS.items():
        asked = parser.make_parser().parse_args(["slice", "m", *line.split()])
        assert SlicingOptions(**inputs.given(asked, SlicingOptions)) == SlicingOptions(**fields)


@pytest.mark.filterwarnings("always:the .* calibration tokens are too few")
def test_few_tokens_are_enough_where_few_or_all_columns_are_kept_and_else_told_in_a_line(run, place, tmp_path):
    command = ["slice", place / "small", *texts(place), "--samples", 1, "--seqlen", 20, *FEW, "--quiet"]
    assert run(*command, "--slicing", 0, "--neurons", 0.25)[0] == run(*command, "--width", 8)[0] == 0
    (tmp_path / "alike.txt").write_text("again " * 999)
    command[2:] = ["--calibration", tmp_path / "alike.txt", *texts(place)[2:], *SIZES, *FEW, "--quiet"]
    status, _, err = run(*command, "--width", 16)
    assert status == 0 and re.fullmatch("minislice: warning: the 288 calibration tokens are too few .*\n", err)
    assert run("compress", *command[1:], "--plan-only")[::2] == (0, ""), "its trials tell nobody"


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    auto, none = (inputs.device_of(Namespace(command="eval", device=name)) for name in ("auto", None))
    assert auto == none == "cpu", "whose dtype is float32"


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_widths_that_do_not_fit_are_told_before_the_work(stream, run, place, tmp_path, monkeypatch):
    for name in ("before_and_after", "slice_streamed"):  # hours, on a large model
        monkeypatch.setattr(f"minislice.command.slice.{name}", None)
    command = ["slice", place / "small", *texts(place), *SIZES, *stream, "--quiet", "--out", tmp_path / "out"]
    assert_refused(run(*command, "--width", "33"), "33", "32")
    assert_refused(run(*command, "--width", "24", "--samples", "1", "--seqlen", "20"), "20 ", "24 dimensions")
    assert_refused(run(*command, "--width", "16,16", "--slice-head"), "leave --slice-head out")


@pytest.mark.parametrize(
    ("width", "said"),
    [(30, "refuses a hidden size of 30"), (16, "it can be one, LlamaForCausalLM with a hidden size of 16")],
)
def test_whether_the_result_can_be_exported_is_said_before_the_work_and_is_so(
    width, said, run, place, tmp_path, monkeypatch
):
    command = ["slice", place / "small", *texts(place), *SIZES, *FEW, "--adapter", "none", "--quiet"]
    status, out, err = run(*command, "--slice-head", "--width", width, "--out", tmp_path / "sliced")
    first, *_ = out.splitlines()
    assert (status, err) == (0, "") and first.startswith("Export to a stock architecture: ") and said in first
    export = ["export", tmp_path / "sliced", "--out", tmp_path / "stock", "--dtype", "bfloat16", "--json"]
    if "refuses" in said:
        monkeypatch.setattr("minislice.command.inputs.load", lambda *_, **__: pytest.fail("it is loaded"))
        assert_refused(run(*export), said)
        return
    assert document(run(*export)[1]) == {"model": str(tmp_path / "sliced"), "saved to": str(tmp_path / "stock")}
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock).__module__.startswith("transformers.models.llama") and stock.dtype == torch.bfloat16


def test_a_file_named_for_calibration_alone_is_halved_alike_in_memory_and_streamed(run, place, monkeypatch, tmp_path):
    command = ["slice", place / "small", "--calibration", place / "test.txt", *SIZES, "--out", tmp_path / "out"]
    stop = Mock(side_effect=ValueError("enough"))
    for name, stream in {"slice_model": [], "slice_streamed": ["--stream"]}.items():
        monkeypatch.setattr(f"minislice.command.slice.{name}", stop)
        assert_refused(run(*command, *stream, "--quiet"), "enough")
    (_, tokenizer), seen = minislice.load(place / "small"), [call.args[1] for call in stop.call_args_list]
    whole = text.tokenize(text.load_text(f"{place}/test.txt"), tokenizer)
    assert torch.equal(*seen) and torch.equal(seen[0], text.sample(whole[: len(whole) // 2], 6, 48))


@pytest.mark.parametrize(
    ("model", "said"),
    [("small", "embedded"), ("mute", "random tokens (no tokenizer)"), ("foreign", "random tokens (the tokenizer bel")],
)
def test_verify_needs_no_hub_and_says_on_what_it_measures(model, said, run, place, monkeypatch):
    monkeypatch.setattr("minislice.command.verify.load_text", lambda source: text.load_text(source)[::100])
    status, out, err = run("verify", place / model, "--seqlen", 12, "--dtypes", "float64", "--quiet")
    assert (status, err) == (0, "") and out.startswith(f"On {said}") and "4 x 12 tokens:\n" in out


# What can't be done is one line. Which values an option takes: test_errors; which files can be read: test_text

FOUND = texts("{place}")
BAD = {
    "model: not on the hub, no text named": (["slice", "absent-model"], ["'absent-model' is no folder", "mini-opt"]),
    "model: no tokenizer": (["eval", "{place}/mute", *FOUND[2:]], ["no tokenizer"]),
    "tokenizer of another model": (["slice", "{place}/foreign", *FOUND, "--out", "x"], ["0 to 119", "tokenizer that"]),
    "stream: own text": (["slice", "mini-opt", "--stream", "--calibration", "own", "--out", "x"], ["no whole model"]),
    "stream: no folder": (["slice", "mini-opt", "--stream"], ["--out"]),
    "text: own": (["slice", "mini-opt", "--calibration", "own", "--evaluation", "own"], ["measure on another's text"]),
    "picture: another's": (["demo", "--picture", "{place}/test.txt"], ["test.txt exists", "another file"]),
    "prompt: empty": (["generate", "{place}/small", "--prompt", ""], ["prompt is empty"]),
    "prompt: long answer": (["generate", "mini-opt", "--prompt", "a", "--max-new-tokens", "600"], ["512 positions"]),
    "held out: all": (["recover", "{saved}/sliced", *FOUND, *SIZES, "--samples=1", "--out", "x"], ["--held-out 0,"]),
    "weights: NaN": (["eval", "{place}/nan", *FOUND[2:], *FEW], ["{place}/nan isn't a number", "--dtype"]),
    "device: all": (["slice", "mini-opt", "--stream", "--out", "x", "--device", "auto"], ["one device"]),
    "compare: occupied": (["compare", "mini-opt", "--out", "{saved}"], ["isn't empty and has no results.jsonl"]),
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval mini-opt --evaluation wikitext2", "can't get wikitext2"),  # not fetched before
        ("slice mini-opt --calibration {place}/latin1.txt", "save it as UTF-8"),
        ("slice mini-opt --stream --calibration {place}/latin1.txt --out x", "save it as UTF-8"),
        ("compress mini-opt --size 80", "--size must be a number, 0 < --size < 1"),
        ("zeroshot mini-opt --tasks piqa --tasks-from {place}", "piqa.jsonl doesn't exist"),
        ("verify mini-opt --dtypes fp16", "--dtypes must be one of float64"),
        ("compress mini-opt --plan-only --out x --fisher", "--out, --fisher would do nothing beside --plan-only"),
        ("compress mini-opt --stock --keep-width --keep-blocks", "--keep-blocks, --keep-width would do nothing"),
        ("slice mini-opt --stream --out x --eval-samples 3", "--eval-samples would do nothing beside --stream"),
        ("slice mini-opt --adapter full --tolerance 0.1", "leave it out, or give --adapter low-rank"),
        ("demo --json --picture x", "--picture would do nothing beside --json: leave one or the other out"),
        ("recover mini-opt --out x --steps 3 --epochs 2", "--epochs would do nothing beside --steps"),
        ("compare mini-opt --out x --limit 3", "give --tasks too, or leave them out"),
        ("compress mini-opt --force", "give --out too, or leave --force out"),
        ("slice mini-opt --force", "give --out too, or leave --force out"),
        ("cost mini-opt --head tied --slice-head", "leave --slice-head out, or give --head own"),
        ("cost {place}/recovered --slicing 0.3 --slice-head", "as it is: leave --slicing, --slice-head out"),
        ("recover mini-opt --out x", "mini-opt isn't sliced"),
        ("recover {place}/recovered --out x", "recovered before"),
        ("eval mini-phi --evaluation embedded", "mini-phi names a model of minislice and a folder: write ./mini-phi"),
        ("generate mini-opt --prompt a --seed -5", "seed must be a whole number from 0 to 4294967295, got -5"),
        ("export mini-opt --out x", "minislice slice --adapter none --slice-head --out DIR"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_loaded(line, message, run, saved, tmp_path, no_work, monkeypatch):
    config = json.loads((saved / "sliced" / "config.json").read_text())
    config["slicing"]["recovery"] = {}
    (tmp_path / "recovered").mkdir()
    (tmp_path / "recovered" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("latin1.txt").write_bytes(b"na\xefve")
    Path("mini-phi").mkdir()
    assert_refused(run(*line.format(place=tmp_path).split()), message)
    assert not Path("x").exists()


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, run, place, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, fragments = ([part.format(place=place, saved=saved) for part in parts] for parts in BAD[case])
    assert_refused(run(*arguments, "--quiet"), *fragments)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("fault", [ValueError, OSError, torch.OutOfMemoryError, MemoryError, KeyboardInterrupt])
def test_an_error_of_many_lines_or_none_is_told_in_one_and_an_interrupt_too(fault, run, monkeypatch):
    error = MemoryError() if fault is MemoryError else fault("the first line,\n\n    and the second\n")
    monkeypatch.setattr("minislice.command.inputs.load", Mock(side_effect=error))
    result = run("eval", "mini-opt", "--json")
    if fault is KeyboardInterrupt:
        assert result == (130, "", "minislice: interrupted\n")
    else:
        assert_refused(result, "the first line, and the second" if str(error) else "MemoryError")


def test_an_option_is_told_as_the_command_line_has_it(run, monkeypatch):
    names = "tasks_from, limit=3, trust_remote_code=True. Or head='own'"  # zeroshot has no --head
    others = "limit, a/tasks_from, limit=4"  # the last is the model's folder
    monkeypatch.setattr("minislice.command.inputs.load", Mock(side_effect=ValueError(f"{names}, {others}")))
    assert_refused(run("zeroshot", "limit=4"), f"--tasks-from, --limit 3, --trust-remote-code. Or head='own', {others}")


def test_only_slice_shares_its_work_among_processes(run, monkeypatch):
    two = nullcontext(Namespace(count=2, index=1))
    monkeypatch.setattr("minislice.large.processes.joined", lambda: two)
    assert_refused(run("families"), "only 'minislice slice'", "torchrun")


def test_an_interrupt_while_torch_is_imported_is_one_line_too(run, monkeypatch):
    monkeypatch.setattr(cli, "import_module", Mock(side_effect=KeyboardInterrupt))
    assert run("families") == (130, "", "minislice: interrupted\n")


@pytest.mark.parametrize("line", ["", "nonesuch", "eval", "slice m --slicing x", "zeroshot m --tasks-from="])
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
    monkeypatch.setattr("sys.stdout", None)  # as `minislice families >&-` closes it
    assert cli.main(["families"]) == 0
    assert capfd.readouterr().err == ""
