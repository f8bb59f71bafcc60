"""The judge at equal sizes: sizes are honest, rows whole and measured once, the command writes all or says why."""

import json
import math
import re
from functools import partial

import pytest
import torch
from commands import document
from models import Recipe
from properties import assert_same_logits
from transformers import LlamaConfig

import minislice
from minislice.architecture.modeling import without_memory
from minislice.architecture.network import network
from minislice.beyond.compare import FIELDS, MEASURED, Bench, compare, faults, losses_of, table
from minislice.beyond.variants import VARIANTS, fewer_layers, mixed, width_of_size
from minislice.corpus.documents import Windows
from minislice.measuring.paired import perplexity_ratio, window_losses
from minislice.measuring.records import read

TINY = Recipe("llama", layers=3, tied=False, seed=5)
ITEM = {"goal": "How?", "sol1": "So.", "sol2": "Not so.", "label": 0}


def tiny(**options):
    return compare(TINY.model(), TINY.tokens(0), **{"evaluation": TINY.tokens(1), **options})


def one_layer(model, tokens, size, known):
    """A variant that needs no time."""
    if size < 0.6:
        raise ValueError("no less than 60%")
    model.model.layers = model.model.layers[:1]
    return model


def test_every_variant_reaches_the_size_as_nearly_as_it_can():
    recipe = Recipe("opt", layers=3, heads=4, head_dim=20)
    model, tokens = recipe.model(), torch.cat([recipe.tokens(0), recipe.tokens(1)])
    rows, dense = compare(model, tokens, recipe.tokens(2), sizes=[0.9]), minislice.parameters(model)
    assert [row["variant"] for row in rows] == ["dense", *VARIANTS]
    for row in rows[1:]:
        assert row["status"] == "done", row["reason"]
        assert row["parameters"] <= 0.9 * dense < row["parameters"] + minislice.parameters(network(model).layers[0])
    wider = minislice.slice_model(recipe.model(), tokens, width=rows[1]["widths"][1] + 8, adapter="full", head="own")
    assert rows[1]["variant"] == "slicegpt" and minislice.parameters(wider) > 0.9 * dense


def test_the_whole_width_is_found_though_a_narrower_model_is_larger():
    config = LlamaConfig(
        vocab_size=100, hidden_size=256, intermediate_size=64, num_hidden_layers=1, tie_word_embeddings=True
    )
    dense = minislice.parameters(without_memory(config))
    assert width_of_size(config, dense, adapter="low-rank", head="tied") == 256


def test_a_row_is_whole_and_what_one_measures_by_hand():
    evaluation = Windows(TINY.tokens(1), torch.tensor([0, 0, 1, 2]), 9)
    second = Windows(TINY.tokens(2), torch.arange(4), 4)
    asked = {"evaluation": evaluation, "second": second, "variants": {"depth": VARIANTS["depth"]}, "sizes": [0.8, 0.01]}
    dense_row, row, failed = rows = tiny(**asked)
    for found in rows:
        again = json.loads(json.dumps(found, allow_nan=False))
        assert faults(again) == [] and set(again) == {*FIELDS, *MEASURED}
    assert all(faults({key: value for key, value in row.items() if key != name}) for name in FIELDS)
    assert faults({**row, "schema": 2})
    assert failed["status"] == "failed" and "can't be reached" in failed["reason"]
    model = minislice.delete_layers(TINY.model(), TINY.tokens(0), size=0.8)
    for measured, text in ((row, evaluation), (row["second"], second)):
        dense, left = (window_losses(each, text.ids, documents=text.documents) for each in (TINY.model(), model))
        ratio = perplexity_ratio(left, dense)
        assert measured["perplexity"] == pytest.approx(minislice.perplexity(model, text.ids), rel=1e-6)
        assert (measured["ratio"], measured["ratio_error"]) == pytest.approx((ratio.ratio, ratio.standard_error))
        assert torch.equal(losses_of(measured).nll, left.nll) and measured["documents"] == text.documents.tolist()
    assert (row["parameters"], row["dense_parameters"]) == tuple(map(minislice.parameters, (model, TINY.model())))
    assert row["peak"] is None or row["peak"] > 4 * row["parameters"]  # None where the system doesn't say
    row["tasks"] = {"piqa": {"accuracy": 61.25, "stderr": 1.5}, "mean": {"accuracy": 61.25, "stderr": None}}
    lines = table(rows).splitlines()
    assert {line.count("|") for line in lines[:5]} == {13}
    shown = lines[3].split(" | ")
    assert shown[1:4] == ["80%", f"{row['parameters']:,}", f"{row['parameters'] / dense_row['parameters']:.1%}"]
    assert shown[4] == f"{row['perplexity']:.2f}" and shown[-2:] == ["61.2 ± 1.5", "61.2 |"]


@pytest.mark.parametrize("act", [fewer_layers, mixed])
def test_what_is_known_at_the_next_size_changes_no_row(act):
    recipe, known = Recipe("llama", layers=3, hidden=80, seed=3), {}  # 8 neurons: less than 1% of it
    tokens = torch.cat([recipe.tokens(0), recipe.tokens(1)])
    act(recipe.model(), tokens, 0.9, known)
    assert known
    assert_same_logits(act(recipe.model(), tokens, 0.7, known), act(recipe.model(), tokens, 0.7, {}), recipe, 0.0)


def test_every_variant_gets_the_dense_model_as_it_was():
    seen = []

    def look(model, tokens, size, known):
        assert known == ({} if size == 0.9 else {"before": 0.9})
        known["before"] = size
        seen.append(minislice.perplexity(model, tokens))
        return one_layer(model, tokens, size, known)

    model = TINY.model()
    for given in (model, TINY.model):
        compare(given, TINY.tokens(0), TINY.tokens(1), variants={"one": look, "other": look}, sizes=[0.9, 0.8])
    assert len(seen) == 8 and len(set(seen)) == 1
    assert minislice.perplexity(model, TINY.tokens(0)) == seen[0]


def scaled(model, tokens, size, known, factor):
    model.lm_head.weight.data *= factor
    return one_layer(model, tokens, size, known)


FAILURES = {
    "an error": (lambda model, tokens, size, known: {}["no such\nthing"], r"KeyError: 'no such\\nthing'"),
    "no numbers": (partial(scaled, factor=math.nan), "the perplexity isn't a finite number"),
    "a number too large": (partial(scaled, factor=1e6), "the perplexity isn't a finite number"),
    "too large": (lambda model, *given: model, r"[\d,]+ parameters are left, more than 90.0% of [\d,]+"),
}


def test_a_failed_row_says_why_and_the_others_go_on():
    variants = {name: variant for name, (variant, _) in FAILURES.items()} | {"one": one_layer}
    _, *failed, last = tiny(variants=variants, sizes=[0.9])
    for row in failed:
        assert row["status"] == "failed" and row["perplexity"] is None
        assert re.fullmatch(FAILURES[row["variant"]][1], row["reason"])
    assert last["status"] == "done"


def test_what_is_finished_is_not_measured_again(tmp_path):
    asked = []

    def counted(model, tokens, size, known):
        asked.append(size)
        return one_layer(model, tokens, size, known)

    out, variants = tmp_path / "results.jsonl", {"one": counted}
    first = tiny(variants=variants, sizes=[0.9, 0.5], out=out)
    again = tiny(variants=variants, sizes=[0.5, 0.8, 0.9], out=out)
    assert asked == [0.9, 0.5, 0.5, 0.8], "the failed one again, and the new one"
    assert again[0] == first[0] and again[3] == first[1]
    assert read(out, faults) == [again[0], again[3], again[1], again[2]]
    earlier = [{name: row[name] for name in row if name not in ("second", "peak", "documents")} for row in again]
    out.write_text("".join(json.dumps(row) + "\n" for row in earlier))
    rows = tiny(variants=variants, sizes=[0.9, 0.7, 0.9], out=out)
    assert [(row["size"], row["status"]) for row in rows] == [(size, "done") for size in (1, 0.9, 0.7, 0.8)]
    whole = out.read_bytes()
    out.write_bytes(whole + whole[:100])  # as a killed run of an earlier version left it
    with pytest.raises(ValueError, match=r"line 6: .*; if only this line is wrong, delete it"):
        tiny(variants=variants, sizes=[0.8], out=out)
    assert out.read_bytes() == whole + whole[:100]


def test_what_is_measured_differently_has_another_key(tmp_path):
    """Another model, text, second text, documents, variant or size; the items of a task, wherever their file lies."""
    tasks = {}
    for name, label in (("one", 0), ("changed", 1), ("copy", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "piqa.jsonl").write_text(json.dumps({**ITEM, "label": label}))
        tasks[name] = {"tokenizer": None, "tasks": ["piqa"], "tasks_from": tmp_path / name, "limit": None}
    model, other = TINY.model, Recipe("llama", layers=3, tied=False, seed=6).model
    A, B = TINY.tokens(0), TINY.tokens(1)
    documents = Windows(B, torch.arange(4), 4)
    benches = [(model, A, [B], None), (other, A, [B], None), (model, B, [B], None), (model, A, [A], None)]
    benches += [(model, A, [B, documents], None), (model, A, [documents], None)]
    benches += [(model, A, [B], tasks["one"]), (model, A, [B], tasks["changed"])]
    keys = {Bench(*bench).key(variant, size) for bench in benches for variant in "ab" for size in (0.9, 0.8)}
    assert len(keys) == 4 * len(benches) and Bench(model, A, [B], tasks["copy"]).key("a", 0.9) in keys


def test_the_command_writes_rows_table_and_plot(tmp_path, run):
    out = tmp_path / "new" / "folder"
    texts = [tmp_path / "cats.json", tmp_path / "dogs.txt"]  # the second is one document
    for text in texts:
        text.write_text(json.dumps([f"Once {n} {text.stem} sat down. " * 9 for n in range(30)]))
    (tmp_path / "piqa.jsonl").write_text(json.dumps(ITEM))
    line = ["compare", "mini-llama", "--calibration", texts[0], "--second-evaluation", texts[1], "--out", out]
    line += ["--samples", "4", "--seqlen", "128", "--eval-samples", "2", "--tasks", "piqa", "--tasks-from", tmp_path]
    status, printed, _ = run(*line, "--quiet", "--variants", "neurons,depth", "--sizes", "0.9,0.02")
    assert status == 0 and "| perplexity, second text | ratio |" in printed
    assert printed.count("a quick look: the first 2 of") == 2
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {"results.jsonl", "table.md", "plot.png"}
    assert (out / "plot.png").stat().st_size > 10_000 and (out / "table.md").read_text() in printed
    rows = read(out / "results.jsonl", faults)
    sizes = [(row["variant"], row["size"], row["status"]) for row in rows[1:]]
    assert sizes == [(name, *size) for name in ("neurons", "depth") for size in ((0.9, "done"), (0.02, "failed"))]
    assert rows[0]["variant"] == "dense" and {row["model"] for row in rows} == {"mini-llama"}
    assert rows[0]["tasks"]["piqa"]["items"] == 1 and rows[0]["tasks"]["mean"]["accuracy"] in (0, 100)
    before = (out / "results.jsonl").read_bytes()
    status, printed, _ = run(*line, "--quiet", "--variants", "depth", "--sizes", "0.9", "--json")
    assert status == 0 and document(printed)["rows"] == [rows[0], rows[3], rows[1]]
    assert all(f"| {name} | 90% |" in (out / "table.md").read_text() for name in ("depth", "neurons"))
    assert (out / "results.jsonl").read_bytes() == before
