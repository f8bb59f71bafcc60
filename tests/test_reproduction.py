"""The paper's tables run again: rows as printed, a file that survives, a gate that stops, a report without inventions.

What is measured is faked where the loop is what's tested.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import shutil
import sys
import uuid
import weakref
from pathlib import Path
from unittest.mock import Mock, create_autospec

import bench
import pytest
import report
import reproduce
import results
import torch
from bench import Bench, Outcome
from protocol import FAMILIES, SLIPS, TABLES, profile_for, rows, settings_of
from torch.distributed.run import get_args_parser
from transformers import OPTConfig

import minislice
from minislice.command.cli import run_script
from minislice.command.parser import make_parser
from minislice.corpus.embedded import paper_table
from minislice.corpus.text import halves, load_text, sample, tokenize, windows
from minislice.large.streaming import StreamedSlicer
from minislice.measuring import provenance, records

PAPER, LLAMA = (profile_for(family, dtype="float16") for family in ("opt", "llama-2"))
OPT = [row for row in rows(PAPER, [1], ["125M"]) if row.percent <= 10]
SETTINGS = settings_of(OPT)
DENSE = 27.64  # of OPT-125M, as printed in table 1


class Fake:
    def __init__(self):
        self.asked, self.batches, self.answers, self.dense, self.commit = [], [], {}, DENSE, "commit"

    def __call__(self, bench, setting, batch_size):
        self.asked.append(setting)
        self.batches.append(batch_size)
        if (answer := self.answers.get(len(self.asked))) is not None:
            raise answer
        return Outcome(values={"perplexity": self.dense + setting.percent + setting.seed / 8})


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(Bench, "measure", lambda *arguments: fake(*arguments))
    monkeypatch.setattr(results, "revision_of", lambda setting: "revision")
    monkeypatch.setattr(provenance, "commit", lambda: fake.commit)
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2"})  # looked up on the disk for every record
    monkeypatch.setattr(reproduce, "why_not", lambda *arguments: None)
    return fake


def run(folder, given=OPT, profile=PAPER, **options):
    return reproduce.reproduce(given, folder / "results.jsonl", profile, quiet=True, **options)


def recorded(folder):
    return results.read(folder / "results.jsonl")


def test_every_printed_value_of_a_family_is_in_its_rows():
    others = ("gpus", "gpu_ms", "calibration_samples", "calibration_seqlen")  # columns that are no results
    checked = 0
    for name, family in FAMILIES.items():
        every = rows(profile_for(name))
        for number in family.tables():
            printed = [line for line in paper_table(number) if line["model"] in family.sources]
            own = [row for row in every if row.table == number]
            assert len(printed) == len(own) > 0
            for line in printed:
                values = {v for c, v in line.items() if isinstance(v, float) and "percent" not in c and c not in others}
                values -= {line.get("perplexity")}  # of table 12
                assert any(values <= set(row.paper.values()) for row in own if row.model == line["model"]), line
                checked += len(values)
    assert checked > 500
    assert {number for family in FAMILIES.values() for number in family.tables()} == set(TABLES)


def test_tables_share_the_dense_model_alone_and_models_up_to_13b_have_three_seeds_and_both_signals():
    one, five = ({s for row in rows(LLAMA, [number], ["7B"]) for s in row.settings} for number in (1, 5))
    assert {setting.percent for setting in one & five} == {0}
    assert [{s.how.samples for s in own if s.percent} for own in (one, five)] == [{1024}, {128}]
    for model, seeds in (("13B", 3), ("70B", 1)):
        sliced = [setting for setting in settings_of(rows(LLAMA, [1], [model])) if setting.percent == 25]
        assert {setting.signal for setting in sliced} == {"normalized", "raw"} and len(sliced) == 2 * seeds


def test_settings_that_measure_the_same_sliced_model_follow_one_another_after_the_dense_model():
    settings = settings_of(rows(LLAMA, [1, 7, 9], ["7B"]))
    groups = [[(s.measure, s.recovered) for s in own] for _, own in itertools.groupby(settings, lambda s: s.slicing)]
    assert len(groups) == len({setting.slicing for setting in settings}) == 1 + 4 * 6
    dense, sliced = [("perplexity", False), ("zero-shot", False)], [("perplexity", False)]
    assert groups[0] == dense and sum(own == [*dense, ("zero-shot", True)] for own in groups) == 3 * 3
    assert all(own == sliced for own in groups if len(own) < 2)


def test_another_choice_of_tasks_has_not_the_papers_mean():
    two = rows(profile_for("phi-2", "paper", tasks="piqa,arc_easy"), [7])
    assert all(set(row.paper) == {"piqa", "arc_easy"} for row in two)


def test_a_slip_in_print_is_a_mean_that_the_papers_own_tasks_do_not_have():
    for (number, model, percent, _), slip in SLIPS.items():
        (line,) = (row for row in paper_table(number) if (row["model"], row["slicing_percent"]) == (model, percent))
        mean = sum(line[task] for task in ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")) / 5
        assert slip.endswith(f" {mean:.2f}") and abs(line["average"] - mean) > 0.05
    with pytest.raises(ValueError, match="no table 13"):
        paper_table(13)


def an_interrupted_run_goes_on(fake, folder):
    fake.answers = {4: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    whole = (folder / "results.jsonl").read_bytes()
    count = run(folder)
    assert fake.asked == [*SETTINGS[:4], *SETTINGS[3:]] and count["finished before"] == 3
    assert (folder / "results.jsonl").read_bytes().startswith(whole)
    assert run(folder)["finished before"] == len(SETTINGS)


def each_setting_has_a_key(fake, folder):
    setting, text = SETTINGS[-1], folder / "text.txt"
    text.write_text("a")
    how = dataclasses.replace(setting.how, limit=3)
    changes = ({"percent": 26}, {"seed": 7}, {"signal": "other"}, {"how": how}, {"text": str(text)}, {})
    keys = [results.key_of(dataclasses.replace(setting, **change), "revision") for change in changes]
    text.write_text("b")
    keys.append(results.key_of(dataclasses.replace(setting, text=str(text)), "revision"))
    assert results.key_of(setting, "revision") in keys
    keys.append(results.key_of(setting, "newer"))
    fake.commit = "newer"
    keys.append(results.key_of(setting, "revision"))
    assert len(set(keys)) == len(keys)


def a_failed_row_is_told(fake, folder):
    fake.answers = {3: RuntimeError("cuBLAS said\nno | really")}
    count = run(folder)
    assert (count["done"], count["failed"]) == (len(SETTINGS) - 1, 1)
    record = recorded(folder)[2]
    assert record["status"] == "failed" and record["reason"] == "RuntimeError: cuBLAS said no | really"
    assert record["values"] == {} and record["setting"]["percent"] == SETTINGS[2].percent
    fake.asked.clear()
    fake.dense = float("nan")
    assert run(folder)["failed"] == 1 and fake.asked == [SETTINGS[2]], "it is run again, and NaN is a failure as well"


def the_gate_stops(fake, folder):
    fake.dense = DENSE - 0.05
    assert run(folder, limit=2)["done"] == 2
    for off in (0.06, -0.3):
        fake.asked.clear()
        fake.dense = DENSE + off
        place = folder / str(off)
        place.mkdir()
        for _ in range(2):  # the second call finds the dense record finished, and stops all the same
            with pytest.raises(ValueError, match=r"[Tt]okenizer or protocol differ"):
                run(place)
        assert fake.asked == SETTINGS[:1] and recorded(place)[0]["values"] == {"perplexity": DENSE + off}
    quick = dataclasses.replace(PAPER, eval_samples=2)  # by which nothing printed was measured
    assert run(folder, rows(quick, [1], ["125M"]), quick, limit=1)["done"] == 1


def two_runs_into_one_file_are_refused(fake, folder):
    with records.opened(folder / "results.jsonl", results.faults), pytest.raises(ValueError, match="another run"):
        run(folder)


def test_a_value_that_the_disk_refuses_was_printed(fake, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(records.Records, "append", Mock(side_effect=OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        reproduce.reproduce(OPT, tmp_path / "results.jsonl", PAPER)
    assert f"perplexity {DENSE}" in capsys.readouterr().out


def a_smaller_batch_fits(fake, folder):
    fake.answers = dict.fromkeys((1, 3, 4), torch.OutOfMemoryError("CUDA out of memory"))
    run(folder, batch_size=2, limit=2)
    assert fake.batches == [2, 1, 2, 1]
    first, second = recorded(folder)
    assert first["status"] == "done" and second["status"] == "failed" and "one sequence at a time" in second["reason"]


def the_report_invents_nothing(fake, folder):
    fake.dense = DENSE + 0.03
    run(folder, limit=4)  # the dense model, and the three seeds of one signal at 10%
    records = recorded(folder)
    table = list(csv.DictReader(io.StringIO(report.as_csv(records))))
    own = [line for line in table if line["table"] == "1" and line["model"] == "OPT-125M"]
    dense, normalized, raw, *others = sorted(own, key=lambda line: int(line["slicing_percent"]))
    assert (float(dense["paper_value"]), float(dense["our_value"])) == (DENSE, DENSE + 0.03)
    assert float(dense["difference"]) == pytest.approx(0.03)
    assert (normalized["signal"], raw["signal"], normalized["seeds"]) == ("normalized", "raw", "3")
    assert float(normalized["our_value"]) == pytest.approx(DENSE + 0.03 + 10 + 1 / 8)
    assert float(normalized["spread_over_seeds"]) == pytest.approx(1 / 8)
    assert dense["keys"].split() + normalized["keys"].split() == [record["key"] for record in records]
    for line in (raw, *others):
        assert line["our_value"] == line["difference"] == line["spread_over_seeds"] == line["keys"] == "", line
        assert float(line["paper_value"]) > 0
        assert line["status"] == ("printed only" if line["row"].startswith("sparsegpt") else "not run")
    text = report.markdown(records)
    assert f"| OPT-125M | 0% | dense | 27.67 *paper {DENSE}* +0.03 | done |" in text
    assert "| not run *paper 34.53* | not run |" in text and "Not as in the paper: nothing." in text


def test_the_report_has_what_an_earlier_run_measured_and_no_later_failure_hides_it(fake, tmp_path):
    for profile in (dataclasses.replace(PAPER, seeds=1, adapter="none"), PAPER):
        run(tmp_path, [row for row in rows(profile, [1], ["125M"]) if row.percent <= 10], profile)
    fake.commit, fake.dense = "newer", float("nan")
    assert run(tmp_path, limit=2)["failed"] == 2
    text = report.markdown(recorded(tmp_path))
    for signal, value in itertools.product(PAPER.signals.split(","), ("37.64", "37.77 ± 0.12")):
        assert f"| OPT-125M | 10% | slicegpt, {signal} | {value} *paper 29.34*" in text
    assert "Not as in the paper: adapter 'none'." in text and "Not as in the paper: nothing." in text


def the_papers_for_ours(right, *arguments):
    return [dataclasses.replace(cell, our_value=cell.our_value or cell.paper_value) for cell in right(*arguments)]


# The mistake: which property finds it, what is replaced, and by what: a function that is given the right one first.
MISTAKES = {
    "a finished key is run again": (an_interrupted_run_goes_on, results, "key_of", lambda right, *_: uuid.uuid4().hex),
    "the key forgets what a file holds": (each_setting_has_a_key, results, "checksum", lambda right, file: ""),
    "a gate that never stops": (the_gate_stops, reproduce, "check_gate", lambda *_: None),
    "NaN is a value": (a_failed_row_is_told, reproduce.math, "isfinite", lambda right, value: True),
    "no lock": (two_runs_into_one_file_are_refused, records, "alone", lambda right, path: contextlib.nullcontext()),
    "memory ends the row": (a_smaller_batch_fits, reproduce, "with_what_fits", lambda right, call, size: call(size)),
    "the paper's value shown as ours": (the_report_invents_nothing, report, "cells", the_papers_for_ours),
}


@pytest.mark.parametrize("check", dict.fromkeys(check for check, *_ in MISTAKES.values()))
def test_the_loop_and_its_report(check, fake, tmp_path):
    check(fake, tmp_path)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake, fake, tmp_path, monkeypatch):
    check, place, name, wrong = MISTAKES[mistake]
    right = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *arguments: wrong(right, *arguments))
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyboardInterrupt, ValueError, StopIteration)):
        check(fake, tmp_path)


def test_what_does_not_fit_is_skipped_with_its_reason_and_products_always_fit():
    small, eight = (dict.fromkeys(reproduce.space_here("cpu", Path("results.jsonl")), size << 30) for size in (16, 640))
    eight["the device"] = 80 << 30
    own = settings_of(rows(LLAMA, [1, 2, 3, 12], ["70B"]))
    reasons = {setting.measure: reproduce.why_not(setting, small, stream=False) for setting in own}
    assert "179 GB" in reasons["perplexity"] and reasons["products"] is None and "276 GB" in reasons["inference"]
    streamed = {setting.measure: reproduce.why_not(setting, eight, stream=True) for setting in own}
    assert streamed["perplexity"] is None and "the device has 86" in streamed["time"], "table 3 slices in memory"
    seven = next(setting for setting in settings_of(rows(LLAMA, [1], ["7B"])) if setting.percent)
    told = reproduce.why_not(seven, eight | {"the host's memory": 45 << 30}, stream=False)
    assert "its signal takes about 52 GB" in told, "Z before and after a block, and X of full width between them"


def test_the_command_for_several_processes_is_one_that_minislice_takes(tmp_path):
    made = settings_of(rows(LLAMA, [1], ["70B"]))[-1].slicing
    torchrun = get_args_parser().parse_args(bench.slice_command(made, tmp_path / "out", 4, 8)[3:])
    assert (torchrun.nproc_per_node, torchrun.module, torchrun.training_script) == ("8", True, "minislice")
    assert torchrun.standalone, "two runs on one machine, each on a port of its own"
    given = make_parser().parse_args(torchrun.training_script_args)
    assert (given.command, given.stream, given.model, given.slicing) == ("slice", True, made.source, 0.3)
    assert (given.samples, given.seqlen, given.adapter) == (1024, 2048, "full")
    assert (given.signal, given.dtype, given.seed) == (made.signal, "float16", made.seed)
    script = "import sys; print('noise\\nminislice: no such model\\nmore', file=sys.stderr); sys.exit(2)"
    with pytest.raises(ValueError, match=r"minislice: no such model$"):
        bench.run_processes([sys.executable, "-c", script])


TEXT = argparse.__file__  # soon read
TEXTS = {"wikitext2": TEXT, "alpaca": TEXT}
SMALL = profile_for("llama-2", "ci", **TEXTS, eval_samples=4, seeds=1, samples=8, seqlen=64, limit=2)


def really(folder, table, percents) -> list[dict]:
    run(folder, [row for row in rows(SMALL, table) if row.percent in percents], SMALL)
    return recorded(folder)


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    return really(tmp_path_factory.mktemp("memory"), [1], (0, 30))


def test_the_perplexity_recorded_is_that_of_minislice_called_by_hand(in_memory, monkeypatch):
    model, tokenizer = minislice.load("mini-llama", dtype=torch.float32)
    first, second = halves(tokenize(load_text(TEXT), tokenizer))
    calibration, evaluation = sample(first, 8, 64, seed=0), windows(second, 64, 4)
    minislice.slice_model(model, calibration, slicing=0.3, adapter="full", head="own")
    record, facts = in_memory[1], in_memory[1]["facts"]
    assert record["values"]["perplexity"] == pytest.approx(minislice.perplexity(model, evaluation), rel=1e-9)
    assert (facts["parameters"], facts["widths"]) == (minislice.parameters(model), model.slicing.widths)
    assert facts["calibration"] == f"argparse.py 8 x 64 ({provenance.hash_of(calibration)})"
    assert record["revision"] == results.revision("mini-llama") and facts["batch size"] == 8
    monkeypatch.setattr(bench, "load_text", lambda text, split: [split])  # a file has halves, and a source has splits
    for split in ("calibration", "test"):
        assert torch.equal(bench.stream_of("mini-llama", "embedded", split), tokenize([split], tokenizer))


def test_what_fails_after_the_slicing_costs_no_second_slicing(monkeypatch, tmp_path):
    monkeypatch.setattr(minislice, "slice_model", slicing := Mock(wraps=minislice.slice_model))
    monkeypatch.setattr(minislice, "perplexity", Mock(side_effect=[torch.OutOfMemoryError("CUDA"), 20.0]))
    for name in ("zero_shot", "recover"):
        monkeypatch.setattr(minislice, name, Mock(side_effect=ValueError("no hub")))
    for name in ("rehearse", "require_package"):
        monkeypatch.setattr(bench, name, Mock())
    record, *failed = really(tmp_path, [1, 7, 9], (30,))
    assert record["values"] == {"perplexity": 20.0} and record["facts"]["batch size"] == 4
    assert [record["reason"] for record in failed] == ["ValueError: no hub"] * 2 and slicing.call_count == 1


def test_a_cost_that_has_no_memory_is_not_tried_with_other_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "pair", pair := Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    failed = [record for record in really(tmp_path, [11, 12], (25,)) if record["status"] == "failed"]
    assert len(failed) == pair.call_count == 2


def test_the_cost_of_a_row_is_measured_beside_the_dense_model(tmp_path):
    found = really(tmp_path, [11, 12], (0, 25))
    every = [cell for cell in report.cells(SMALL, found) if cell.our_value]
    for metric in ("tokens_per_second", "total"):
        assert {cell.slicing_percent for cell in every if cell.metric == metric} == {0, 25}
    values = next(record["values"] for record in found if "total" in record["values"])
    parts = {"down_proj": 1, "up_or_gate_proj": 2, "k_or_v": 2, "q": 1, "out": 1}
    assert values["dense_total"] == pytest.approx(sum(n * values[f"dense_{name}"] for name, n in parts.items()))
    assert values["total_ratio"] == pytest.approx(values["total"] / values["dense_total"])


def streamed(monkeypatch, *errors):
    """Have each slicing from disk raise one of the errors before it slices the head; None: it goes on to its end."""
    errors, slice_head = iter(errors), StreamedSlicer.slice_head

    def fails(slicer):
        if error := next(errors):
            raise error
        slice_head(slicer)

    monkeypatch.setattr(StreamedSlicer, "slice_head", fails)
    monkeypatch.setattr(minislice, "slice_streamed", slicing := Mock(wraps=minislice.slice_streamed))
    return slicing


def batch_sizes(slicing):
    return [call.kwargs["batch_size"] for call in slicing.call_args_list]


def test_streamed_slicing_stays_on_the_disk_until_its_rows_are_finished(in_memory, monkeypatch, tmp_path):
    asked, slice_layer = [row for row in rows(SMALL, [1]) if row.percent in (0, 30)], StreamedSlicer.slice_layer
    slicing = streamed(monkeypatch, torch.OutOfMemoryError("CUDA"), KeyboardInterrupt(), OSError("no room"), None)
    layers = create_autospec(slice_layer, side_effect=slice_layer)
    monkeypatch.setattr(StreamedSlicer, "slice_layer", layers)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, asked, SMALL, stream=True)
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "why_not", lambda *arguments: "no room")
        run(tmp_path, asked, SMALL, stream=True)
        patch.setattr(shutil, "disk_usage", lambda folder: Mock(free=0))
        assert reproduce.space_here("cpu", tmp_path / "results.jsonl")["the disk"] > 1000
    run(tmp_path, asked[:1], SMALL, stream=True)  # the dense model's row, as the notebook runs it first
    assert run(tmp_path, asked, SMALL, stream=True)["failed"] == 1
    assert run(tmp_path, asked, SMALL, stream=True)["done"] == 1 and batch_sizes(slicing) == [8, 4, 4, 4]
    assert layers.call_count == 2 * (len(in_memory[1]["facts"]["widths"]) // 2), "a run went on after the last layer"
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl"}
    for streamed_record, whole in zip(recorded(tmp_path), in_memory, strict=True):
        assert streamed_record["values"] == pytest.approx(whole["values"], rel=1e-5)  # by batches of another size
        sizes = {report.how(record)["of parameters"] for record in (streamed_record, whole)}
        assert len(sizes) == 1 and "-" not in sizes


def test_a_streamed_slicing_whose_row_failed_is_kept_beside_the_next_one(monkeypatch, tmp_path):
    asked, room, full = [row for row in rows(SMALL, [1]) if row.percent in (20, 30)], Mock(free=1 << 40), Mock(free=0)
    slicing = streamed(monkeypatch, None, OSError("full"), torch.OutOfMemoryError("CUDA"), None)
    monkeypatch.setattr(minislice, "perplexity", Mock(side_effect=[OSError("no hub"), OSError("no hub"), 20.0, 20.0]))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", Mock(side_effect=[room, room, full]))  # as the second slicing finds it
        assert run(tmp_path, asked, SMALL, stream=True)["failed"] == 2
    assert "the disk has 0.00 GB" in recorded(tmp_path)[1]["reason"]
    assert run(tmp_path, asked, SMALL, stream=True)["failed"] == 2
    count = run(tmp_path, asked, SMALL, stream=True, batch_size=4)
    assert (count["done"], count["failed"]) == (1, 1) and "sliced by batches of 8" in recorded(tmp_path)[1]["reason"]
    assert run(tmp_path, asked, SMALL, stream=True, batch_size=4)["done"] == 1
    assert batch_sizes(slicing) == [8] * 5, "the first slicing was found again, and the second gone on with"
    assert [record["facts"]["sliced by batches of"] for record in recorded(tmp_path)] == [8, 8]
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl"}


@pytest.mark.parametrize("name", ["{}-by-8", ".{}-by-8.partial"])  # finished, and unfinished
def test_no_run_goes_on_with_half_of_a_slicing_and_nothing_else_is_deleted(name, monkeypatch, tmp_path):
    place, slicing = Bench("cpu", tmp_path), settings_of(rows(SMALL, [1]))[-1].slicing
    (tmp_path / name.format(bench.key_of(slicing))).mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert place.begun(slicing).name.endswith("-by-8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", Mock(side_effect=KeyboardInterrupt))
        place.clear(slicing)
    assert place.begun(slicing) is None
    monkeypatch.setattr(minislice, "slice_streamed", Mock())
    place._streamed(slicing, None, None, 8, {})  # it begins again, without that half
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_other_model_takes_the_memory_that_a_cost_is_measured_in(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "empty_cache", empty := Mock())
    place = Bench("cpu", tmp_path / "work", last=torch.nn.Linear(1, 1))
    place.last.itself, last = [place.last], weakref.ref(place.last)
    monkeypatch.setattr(bench, "inference", lambda *arguments: last())
    assert place.measure(settings_of(rows(SMALL, [11]))[0], 1) is None
    assert empty.called, "other processes have the memory that torch keeps for later"


def test_recovery_takes_as_many_sequences_a_step_whatever_fits_and_on_random_tokens_all_its_steps(monkeypatch):
    monkeypatch.setattr(minislice, "recover", recover := Mock())
    bench.recover(None, None, next(s for s in settings_of(rows(SMALL, [9])) if s.recovered), Outcome())
    assert recover.call_args.kwargs == {"seed": 0, "steps": 2}
    (setting,) = settings_of(rows(SMALL, [3]))
    bench.slicing_and_recovery(setting, "cpu", 8)
    assert recover.call_args.kwargs["patience"] > 5000, "no loss on random tokens falls for long"


def test_what_is_missing_after_the_slicing_is_told_before_it(monkeypatch, tmp_path):
    monkeypatch.setattr(Bench, "_model", lambda *arguments: pytest.fail("a model was made"))
    short = dataclasses.replace(SMALL, recovery_samples=10**6)
    no_items = dataclasses.replace(SMALL, tasks_from=str(tmp_path))
    for profile, told in ((short, "but the text has"), (no_items, "piqa.jsonl doesn't exist"), (SMALL, "no hub")):
        if told == "no hub":
            bench.rehearse.cache_clear()
            monkeypatch.setattr(minislice, "zero_shot", Mock(side_effect=ValueError(told)))
        setting = next(s for s in settings_of(rows(profile, [9])) if s.recovered)
        with pytest.raises(ValueError, match=told):
            Bench("cpu", tmp_path / "work").measure(setting, 1)


def test_a_model_in_one_file_has_a_revision_and_one_of_the_hub_its_commit(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    assert len(results.revision(str(tmp_path / "model.gguf"))) == 12
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached, commit = tmp_path / "models--some--model", "0123456789" * 4
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    OPTConfig().save_pretrained(cached / "snapshots" / commit)
    assert results.revision("some/model") == commit


def test_the_scripts_run_the_rows_and_write_a_report(fake, tmp_path, capsys):
    out, written = tmp_path / "results.jsonl", tmp_path / "report.md"
    few = ["--tables", "5", "--rows", "2", "--eval-samples", "2"]
    assert run_script(reproduce, ["opt", "--profile", "ci", *few, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "[1/9] mini-opt dense: perplexity" in printed and "[2/9] mini-opt 10%, embedded 4 x 128" in printed
    assert {setting.how.eval_samples for setting in fake.asked} == {2}
    assert run_script(reproduce, ["opt", "--profile", "ci", "--preflight", "--out", str(out)]) == 0
    assert "can run: " in capsys.readouterr().out
    assert run_script(report, [str(out), "--out", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["csv"].endswith("report.csv")
    text = written.read_text().split("## mini-opt, in OPT's place")[1]
    assert "*paper" not in text and text.count("| not run |") > 5


def test_a_model_that_is_not_there_is_a_row_that_says_so(tmp_path):
    out = tmp_path / "r.jsonl"
    assert run_script(reproduce, ["opt", "--tables", "1", "--models", "125M", "--rows", "1", "--out", str(out)]) == 0
    (record,) = results.read(out)
    assert record["status"] == "failed" and "facebook/opt-125m" in record["reason"]


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        (reproduce, ["opt", "--tables", "12"], "isn't in table 12"),
        (reproduce, ["opt", "--processes", "2"], "--stream"),
        (reproduce, ["opt", "--seeds", "1000000000"], "seeds must be a whole number from 1 to 100"),
        (reproduce, ["opt", "--profile", "ci", "--out", "notes.txt"], "isn't a results file"),
        (report, ["absent.jsonl"], "no results"),
        (report, ["notes.txt"], "notes.txt is not a results file of minislice: line 1"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(script, options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("This is no\nresults file.\n")
    assert run_script(script, ["--out", {reproduce: "r.jsonl", report: "report.md"}[script], *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "This is no\nresults file.\n"
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"notes.txt"}
