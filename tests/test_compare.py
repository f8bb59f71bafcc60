"""The judge at equal sizes: sizes are honest, rows whole and measured once, the command writes all or says why."""

import copy
import json
import re

import pytest
import torch
from commands import document
from models import Recipe
from properties import assert_same_logits

import minislice
from minislice.architecture.network import network
from minislice.beyond.compare import compare, unchanged
from minislice.beyond.rows import FIELDS, LATER, faults, losses_of, table
from minislice.beyond.variants import VARIANTS, fewer_layers, mixed, remembering, width_of_size
from minislice.corpus.documents import Windows
from minislice.corpus.text import disjoint_streams, sample, windows
from minislice.measuring.paired import perplexity_ratio, window_losses
from minislice.measuring.records import read

TINY = Recipe("llama", layers=3, tied=False, seed=5)
SLICING = {
    "slicegpt": {"adapter": "full", "head": "own"},
    "aligned": {"adapter": "none", "head": "own"},
    "tied": {"adapter": "low-rank", "head": "tied"},
}


@pytest.fixture(scope="module")
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """A calibration and an evaluation set; the embedded models share a tokenizer."""
    _, tokenizer = minislice.load("mini-opt")
    calibration, evaluation = disjoint_streams("embedded", "embedded", tokenizer)
    return sample(calibration, 8, 128, 0), windows(evaluation, 128, 3)


def tiny(**options):
    """A comparison on a random model."""
    return compare(TINY.model(), TINY.tokens(0), **{"evaluation": TINY.tokens(1), **options})


def half(model, tokens, size):
    """A variant that needs no time: the head's upper half is gone."""
    if size < 0.6:
        raise ValueError("no less than 60%")
    model.lm_head.weight.data[:60] = 0
    model.model.layers = model.model.layers[:1]
    return model


@pytest.mark.parametrize("source", ["mini-opt", pytest.param("mini-llama", marks=pytest.mark.slow)])
def test_every_variant_reaches_the_size_as_nearly_as_it_can(source, tokens):
    model, _ = minislice.load(source, dtype="float32")
    rows = compare(model, *tokens, sizes=[0.85])
    dense = minislice.parameters(model)
    assert [row["variant"] for row in rows] == ["dense", *VARIANTS]
    for row in rows[1:]:
        if row["variant"] == "tied" and source != "mini-opt":
            assert row["status"] == "failed" and "this one's doesn't" in row["reason"]
            continue
        assert row["status"] == "done", row["reason"]
        assert row["parameters"] <= 0.85 * dense
        if row["variant"] in SLICING:
            options, width = SLICING[row["variant"]], row["widths"][1]
            assert width % 8 == 0
            fresh, _ = minislice.load(source, dtype="float32")
            wider = minislice.slice_model(fresh, tokens[0], width=width + 8, **options)
            assert minislice.parameters(wider) > 0.85 * dense
        else:
            assert row["parameters"] + minislice.parameters(network(model).layers[0]) > 0.85 * dense


@pytest.mark.parametrize("options", SLICING.values(), ids=SLICING)
def test_the_size_is_known_without_weights(options, tokens):
    """Exactly, or as an upper bound where ranks depend on the text."""
    model, _ = minislice.load("mini-opt", dtype="float32")
    config = copy.deepcopy(model.config)
    left = minislice.parameters(minislice.slice_model(model, tokens[0], width=136, **options))
    assert width_of_size(config, left - 1, **options) < 136
    if options["adapter"] != "low-rank":
        assert width_of_size(config, left, **options) == 136


def test_a_row_is_whole_and_what_one_measures_by_hand():
    dense_row, row, failed = tiny(variants={"depth": VARIANTS["depth"]}, sizes=[0.8, 0.01])
    for found in (dense_row, row, failed):
        again = json.loads(json.dumps(found, allow_nan=False))
        assert faults(again) == [] and set(again) == set(FIELDS | LATER)
    assert all(faults({key: value for key, value in row.items() if key != name}) for name in FIELDS)
    assert failed["status"] == "failed" and "can't be reached" in failed["reason"]
    model = minislice.delete_layers(TINY.model(), TINY.tokens(0), size=0.8)
    dense, left = window_losses(TINY.model(), TINY.tokens(1)), window_losses(model, TINY.tokens(1))
    ratio = perplexity_ratio(left, dense)
    assert row["perplexity"] == pytest.approx(minislice.perplexity(model, TINY.tokens(1)), rel=1e-6)
    assert (row["ratio"], row["ratio_error"]) == pytest.approx((ratio.ratio, ratio.standard_error))
    assert row["ratio"] == pytest.approx(row["perplexity"] / dense.perplexity)
    assert (row["parameters"], row["dense_parameters"]) == tuple(map(minislice.parameters, (model, TINY.model())))
    assert torch.equal(losses_of(row).nll, left.nll) and row["seconds"] >= 0
    assert row["peak"] is None or row["peak"] > 4 * row["parameters"]  # None where the system doesn't say


@pytest.mark.parametrize("act", [fewer_layers, mixed])
def test_what_is_kept_for_the_next_size_changes_no_row(act):
    """Nor is it taken for another text's: of this model, each text has another layer go first."""
    variant, recipe = remembering(act), Recipe("llama", layers=3, hidden=80, seed=3)  # 8 neurons: less than 1% of it
    texts = [torch.cat([recipe.tokens(seed), recipe.tokens(seed + 1)]) for seed in (0, 2)]
    cases = [(texts[0], 0.9), (texts[0], 0.7), (texts[1], 0.9)]
    alone = [remembering(act)(recipe.model(), *case) for case in cases]
    after = [variant(recipe.model(), *case) for case in cases]
    for own, other in zip(alone, after, strict=True):
        assert_same_logits(own, other, recipe, 0.0)


def test_every_variant_gets_the_dense_model_as_it_was():
    seen = []

    def look(model, tokens, size):
        seen.append(minislice.perplexity(model, tokens))
        return half(model, tokens, size)

    model = TINY.model()
    for given in (model, TINY.model):
        compare(given, TINY.tokens(0), TINY.tokens(1), variants={"one": look, "other": look}, sizes=[0.9, 0.8])
    assert len(seen) == 8 and len(set(seen)) == 1
    assert minislice.perplexity(model, TINY.tokens(0)) == seen[0]


def without_numbers(model, tokens, size):
    model.lm_head.weight.data.fill_(torch.nan)
    return half(model, tokens, size)


FAILURES = {
    "an error": (lambda model, tokens, size: {}["no such\nthing"], r"KeyError: 'no such\\nthing'"),
    "no numbers": (without_numbers, "the perplexity isn't a finite number"),
    "too large": (unchanged, r"[\d,]+ parameters are left, more than 90.0% of [\d,]+"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_row_says_why_and_the_others_go_on(case):
    variant, reason = FAILURES[case]
    rows = tiny(variants={"bad": variant, "half": half}, sizes=[0.9])
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert re.fullmatch(reason, rows[1]["reason"]) and rows[1]["perplexity"] is None


def test_what_is_finished_is_not_measured_again(tmp_path):
    asked = []

    def counted(model, tokens, size):
        asked.append(size)
        return half(model, tokens, size)

    out, variants = tmp_path / "results.jsonl", {"half": counted}
    first = tiny(variants=variants, sizes=[0.9, 0.5], out=out)
    again = tiny(variants=variants, sizes=[0.5, 0.8, 0.9], out=out)
    assert asked == [0.9, 0.5, 0.5, 0.8], "the failed one again, and the new one"
    assert again[0] == first[0] and again[3] == first[1]
    assert read(out, faults) == [again[0], again[3], again[1], again[2]]
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])  # killed while it wrote the last line
    tiny(variants=variants, sizes=[0.8, 0.9], out=out)
    assert asked[4:] == [0.8] and out.read_bytes().startswith(whole[: whole[:-1].rfind(b"\n") + 1])
    whole = out.read_bytes()
    out.write_bytes(whole[:-1])  # an editor has taken the last newline away
    tiny(variants=variants, sizes=[0.8, 0.9], out=out)
    assert asked[5:] == [] and out.read_bytes() == whole


@pytest.mark.parametrize("change", [{"nll": [None, None]}, {"predicted": []}, {"perplexity": 0.0}, {"key": None}])
def test_a_row_that_somebody_edited_is_told_by_its_line(change, tmp_path):
    out = tmp_path / "results.jsonl"
    rows = tiny(variants={"half": half}, sizes=[0.9, 0.8], out=out)
    rows[1] |= change
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"results\.jsonl is not a results file of minislice: line 2: "):
        tiny(variants={"half": half}, sizes=[0.9, 0.8], out=out)
    assert out.read_bytes() == before


def test_other_texts_and_models_are_other_rows():
    other = Recipe("llama", layers=3, tied=False, seed=6)
    cases = [(TINY, 0, 1), (other, 0, 1), (TINY, 7, 1), (TINY, 0, 8)]
    keys = {
        row["key"]
        for recipe, *texts in cases
        for row in compare(recipe.model(), *map(TINY.tokens, texts), variants={"half": half}, sizes=[0.9, 0.8])
    }
    assert len(keys) == 12


def test_other_items_of_a_task_are_another_row(tmp_path):
    """The items of a task's file decide, wherever it lies."""
    pytest.importorskip("lm_eval")
    model, tokenizer = minislice.load("mini-llama", dtype="float32")
    tokens, items = torch.randint(300, (2, 16)), {}
    for name in ("one", "changed", "copy"):
        item = {"goal": "How?", "sol1": "So.", "sol2": "Not so.", "label": int(name == "changed")}
        (tmp_path / name).mkdir()
        (tmp_path / name / "piqa.jsonl").write_text(json.dumps(item) + "\n")
        asked = {"tasks": ["piqa"], "tokenizer": tokenizer, "tasks_from": tmp_path / name}
        items[name] = compare(model, tokens, tokens, variants={"all": unchanged}, sizes=[1.0], **asked)[0]
    assert items["one"]["key"] == items["copy"]["key"] != items["changed"]["key"]
    assert items["one"]["tasks"]["piqa"]["accuracy"] + items["changed"]["tasks"]["piqa"]["accuracy"] == 100


def test_the_table_shows_every_row():
    rows = tiny(variants={"half": half}, sizes=[0.9, 0.5])
    rows[1]["tasks"] = {"piqa": {"accuracy": 61.25, "stderr": 1.5}, "mean": {"accuracy": 61.25, "stderr": None}}
    lines = table(rows).splitlines()
    assert lines[0].endswith("| CPU seconds | peak | piqa | mean |") and lines[-1] == "- half 50%: no less than 60%"
    assert {line.count("|") for line in lines[:5]} == {11}
    shown = lines[3].split(" | ")
    assert shown[1:4] == ["90%", f"{rows[1]['parameters']:,}", f"{rows[1]['parameters'] / rows[0]['parameters']:.1%}"]
    assert shown[4] == f"{rows[1]['perplexity']:.2f}" and shown[-2:] == ["61.2 ± 1.5", "61.2 |"]


BAD = {
    "no size": ({"sizes": []}, "sizes must be a list of shares"),
    "no variant": ({"variants": {}}, "functions by the name of each variant, at least one"),
    "dense": ({"variants": {"dense": half}}, "'dense' is the dense model's row"),
    "one window": ({"evaluation": TINY.tokens(1)[:1]}, "a standard error needs at least two windows"),
    "no tokenizer": ({"tasks": ["piqa"]}, "the dense model can't be measured: zero-shot tasks are texts"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_a_second_text_and_documents_are_in_the_row():
    evaluation = Windows(TINY.tokens(1), torch.tensor([0, 0, 1, 2][: len(TINY.tokens(1))]), 9)
    second = Windows(TINY.tokens(2), torch.arange(len(TINY.tokens(2))), len(TINY.tokens(2)))
    rows = compare(TINY.model(), TINY.tokens(0), evaluation, second=second, variants={"half": half}, sizes=[0.9])
    left = half(TINY.model(), None, 0.9)
    for measured, text in ((rows[1], evaluation), (rows[1]["second"], second)):
        dense, losses = (window_losses(model, text.ids, documents=text.documents) for model in (TINY.model(), left))
        ratio = perplexity_ratio(losses, dense)
        assert (measured["ratio"], measured["ratio_error"]) == pytest.approx((ratio.ratio, ratio.standard_error))
        assert measured["documents"] == text.documents.tolist()
    assert faults(rows[1]) == [] and faults({**rows[1], "second": {**rows[1]["second"], "perplexity": 1.0}})
    assert table(rows).splitlines()[3].count(f"{rows[1]['second']['perplexity']:.2f}") == 1
    alone = compare(TINY.model(), TINY.tokens(0), evaluation.ids, variants={"half": half}, sizes=[0.9])
    assert not {row["key"] for row in rows} & {row["key"] for row in alone}


def test_the_command_writes_rows_table_and_plot(tmp_path, run):
    out = tmp_path / "new" / "folder"
    (stories := tmp_path / "stories.json").write_text(json.dumps([f"Once {n} cats sat down. " * 9 for n in range(30)]))
    line = ["compare", "mini-llama", "--samples", "8", "--seqlen", "128", "--eval-samples", "2", "--out", out]
    line += ["--second-evaluation", stories, "--quiet", "--variants"]
    status, printed, _ = run(*line, "slicegpt,depth", "--sizes", "0.9,0.02")
    assert status == 0 and "| perplexity, second text | ratio |" in printed
    assert printed.count("a quick look: the first 2 of") == 2
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {"results.jsonl", "table.md", "plot.png"}
    assert (out / "plot.png").stat().st_size > 10_000 and (out / "table.md").read_text() in printed
    rows = read(out / "results.jsonl", faults)
    assert [(row["variant"], row["size"], row["status"]) for row in rows] == [
        ("dense", 1.0, "done"),
        *((name, size, status) for name in ("slicegpt", "depth") for size, status in ((0.9, "done"), (0.02, "failed"))),
    ]
    assert {row["model"] for row in rows} == {"mini-llama"}
    before = (out / "results.jsonl").read_bytes()
    status, printed, _ = run(*line, "depth,slicegpt", "--sizes", "0.9", "--json")
    assert status == 0 and document(printed)["rows"] == [rows[0], rows[3], rows[1]]
    assert (out / "results.jsonl").read_bytes() == before
