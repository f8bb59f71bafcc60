"""The paper's tables run again: rows as printed, a file that survives, a gate that stops, a report without inventions.

What is measured is faked where the loop is what's tested. Every property is also run against a mistake, planted in the
code, and must fail there.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
from pathlib import Path

import bench
import cells as cells_module
import preflight
import provenance
import pytest
import report
import reproduce
import results
import runner
import torch
from bench import Bench, Outcome, slice_command
from protocol import FAMILIES, PROFILES, SLIPS, TABLES, Profile, profile_for, rows
from torch.distributed.run import get_args_parser

import minislice
from minislice.command.cli import COMMANDS, main, run_script
from minislice.command.parser import add_command, parser_for
from minislice.corpus.embedded import paper_table
from minislice.measuring import records

OPT = rows("opt", PROFILES["paper"], [1], ["125M"])
SETTINGS = runner.settings_of(OPT, "float32")
DENSE = 27.64  # of OPT-125M, as printed in table 1


class Fake:
    """Stands in for the measuring: what was asked for, and what it answers."""

    def __init__(self):
        self.asked, self.batches, self.answers, self.dense = [], [], {}, DENSE

    def __call__(self, bench, setting, batch_size):
        self.asked.append(setting)
        self.batches.append(batch_size)
        answer = self.answers.get(len(self.asked))
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer(batch_size)
        value = self.dense + setting.percent + setting.seed / 8
        return Outcome(values={"perplexity": value}, facts={"dense parameters": 100, "parameters": 110})


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(Bench, "measure", lambda *arguments: fake(*arguments))
    monkeypatch.setattr(provenance, "revision_of", lambda setting: "revision")
    monkeypatch.setattr(provenance, "commit", lambda: "commit")
    monkeypatch.setattr(runner, "why_not", lambda *arguments: None)
    return fake


def run(folder, given=OPT, **options):
    options = {"family": "opt", "profile": PROFILES["paper"], "say": lambda line: None} | options
    return runner.reproduce(given, folder / "results.jsonl", **options)


def lines(folder):
    return (folder / "results.jsonl").read_text().splitlines()


# The protocol


def test_every_printed_value_of_a_family_is_in_its_rows():
    checked = 0
    for name, family in FAMILIES.items():
        mine = rows(name, PROFILES["paper"])
        for number in family.tables():
            printed = [row for row in paper_table(number) if row["model"] in family.sources]
            own = [row for row in mine if row.table == number]
            assert len(printed) == len(own) > 0
            for line in printed:
                values = {
                    value for column, value in line.items() if isinstance(value, float) and "percent" not in column
                }
                values -= {line.get(column) for column in ("gpus", "gpu_ms", "perplexity", "calibration_samples")}
                values -= {line.get("calibration_seqlen")} if number == 3 else set()
                assert any(values <= set(row.paper.values()) for row in own if row.model == line["model"]), line
                checked += len(values)
    assert checked > 500


def test_phi_2_is_in_no_table_of_perplexity_or_latency():
    assert FAMILIES["phi-2"].tables() == [3, 7, 8, 9, 10]
    assert {number for family in FAMILIES.values() for number in family.tables()} == set(TABLES)


def test_tables_1_and_5_share_the_dense_model_and_nothing_else():
    one, five = (rows("llama-2", PROFILES["paper"], [number], ["7B"]) for number in (1, 5))
    settings = [{setting for row in own for setting in row.settings} for own in (one, five)]
    assert {setting.percent for setting in settings[0] & settings[1]} == {0}
    assert {setting.samples for setting in settings[0]} == {None, 1024}
    assert {setting.samples for setting in settings[1]} == {None, 128}


def test_models_up_to_13b_have_three_seeds_and_both_signals_and_larger_ones_one_seed():
    for model, seeds in {"LLAMA-2-13B": 3, "LLAMA-2-70B": 1}.items():
        row = next(row for row in rows("llama-2", PROFILES["paper"], [1], [model]) if row.percent == 25)
        assert {setting.signal for setting in row.settings} == {"normalized", "raw"}
        assert len(row.settings) == 2 * seeds


def test_a_slip_in_print_is_kept_and_said():
    for (table, model, percent, column), note in SLIPS.items():
        (row,) = (r for r in rows(family_of(model), PROFILES["paper"], [table], [model]) if r.percent == percent)
        mean = sum(value for name, value in row.paper.items() if name != "average") / 5
        assert abs(row.paper[column] - mean) > 0.05 and f"{mean:.2f}" in note


def test_there_is_no_slip_that_is_not_said():
    for number in (7, 8, 9, 10):
        for line in paper_table(number):
            mean = sum(line[task] for task in ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")) / 5
            if abs(mean - line["average"]) > 0.011:
                assert (number, line["model"], int(line["slicing_percent"]), "average") in SLIPS


def family_of(model):
    return next(name for name, family in FAMILIES.items() if model in family.sources)


def test_a_stand_in_has_the_tables_rows_and_none_of_their_values():
    for family in FAMILIES:
        own = rows(family, profile_for(family, "ci"))
        assert own and all(row.paper == {} and row.settings and row.label == "" for row in own)
        assert {row.model for row in own} == {FAMILIES[family].stand_in}


def test_a_mean_of_some_tasks_is_not_compared_with_the_papers_of_five():
    two = profile_for("phi-2", "paper", tasks=("piqa", "arc_easy"))
    for row in rows("phi-2", two, [7]):
        assert set(row.paper) == {"piqa", "arc_easy"}
    assert all("average" in row.paper for row in rows("phi-2", PROFILES["paper"], [7]))


def test_what_is_not_the_papers_protocol_is_said():
    assert report._changed(PROFILES["paper"]) == ""
    assert "limit 3" in report._changed(profile_for("opt", "paper", limit=3))
    assert "seqlen 64" in report._changed(profile_for("opt", "paper", seqlen=64))


def test_a_profile_survives_json():
    for profile in (*PROFILES.values(), profile_for("opt", "ci", limit=3)):
        assert Profile.from_json(json.loads(json.dumps(dataclasses.asdict(profile)))) == profile


# The loop


def goes_on_behind_a_line_that_was_cut(fake, folder, monkeypatch):
    run(folder, limit=4)
    path = folder / "results.jsonl"
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: last + (len(whole) - last) // 2])
    fake.asked.clear()
    run(folder, limit=1)
    assert fake.asked == [SETTINGS[3]], "only the row whose line was cut is run again"
    assert [results.faults(json.loads(line)) for line in lines(folder)] == [[]] * 4
    assert path.read_bytes().startswith(whole[:last]), "what was whole is as it was"


def runs_nothing_twice(fake, folder, monkeypatch):
    run(folder)
    first = list(fake.asked)
    summary = run(folder)
    assert fake.asked == first and summary.done == 0 and summary.finished_before == len(SETTINGS) == len(first)
    assert len(lines(folder)) == len(SETTINGS)


def another_setting_revision_or_commit_is_another_result(fake, folder, monkeypatch):
    setting = SETTINGS[-1]
    keys = {results.key_of(setting, "revision", "commit"), results.key_of(setting, "revision", "commit")}
    assert len(keys) == 1
    changes = {
        **{"percent": 26, "seed": 7, "signal": "other", "adapter": "none", "dtype": "float16", "samples": 3},
        **{"calibration": "other", "recovery": "alpaca", "measure": "zero-shot", "model": "other", "limit": 3},
    }
    for name, value in changes.items():
        keys.add(results.key_of(dataclasses.replace(setting, **{name: value}), "revision", "commit"))
    keys |= {results.key_of(setting, "newer", "commit"), results.key_of(setting, "revision", "newer")}
    for text in ("what a file says", "what it says later"):
        (folder / "text.txt").write_text(text)
        named = dataclasses.replace(setting, calibration=str(folder / "text.txt"))
        keys.add(results.key_of(named, "revision", "commit"))
        (folder / "piqa.jsonl").write_text(text)
        named = dataclasses.replace(setting, tasks=("piqa",), tasks_from=str(folder))
        keys.add(results.key_of(named, "revision", "commit"))
    assert len(keys) == 7 + len(changes)


def a_failed_row_is_told_and_the_rest_goes_on(fake, folder, monkeypatch):
    fake.answers = {3: RuntimeError("cuBLAS said\nno | really")}
    summary = run(folder)
    assert (summary.done, summary.failed) == (len(SETTINGS) - 1, 1)
    record = json.loads(lines(folder)[2])
    assert record["status"] == "failed" and record["reason"] == "RuntimeError: cuBLAS said no | really"
    assert record["values"] == {} and record["setting"]["percent"] == SETTINGS[2].percent
    fake.asked.clear()
    assert run(folder).done == 1 and fake.asked == [SETTINGS[2]], "and it is run again the next time"


def an_interrupted_run_goes_on(fake, folder, monkeypatch):
    fake.answers = {4: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    assert len(lines(folder)) == 3
    fake.answers, before = {}, lines(folder)
    summary = run(folder)
    assert (summary.finished_before, summary.done) == (3, len(SETTINGS) - 3)
    assert lines(folder)[:3] == before


def the_gate_stops_where_the_dense_model_is_not_the_papers(fake, folder, monkeypatch):
    for off, stops in {0.04: False, -0.05: False, 0.06: True, -0.3: True, 100.0: True}.items():
        place = folder / str(off)
        place.mkdir()
        fake.asked.clear()
        fake.dense = DENSE + off
        if not stops:
            assert run(place).done == len(SETTINGS)
            continue
        for _ in range(2):  # the second call finds the dense record finished, and stops all the same
            with pytest.raises(runner.ProtocolDiffers, match=r"[Tt]okenizer or protocol differ"):
                run(place)
        assert fake.asked == SETTINGS[:1], "nothing is sliced"
        (record,) = map(json.loads, lines(place))
        assert record["values"] == {"perplexity": DENSE + off}, "what was measured stays"


def what_is_no_number_is_a_failure(fake, folder, monkeypatch):
    fake.dense = float("nan")
    assert run(folder, limit=2).failed == 2
    assert all(json.loads(line)["status"] == "failed" for line in lines(folder))


def two_runs_into_one_file_are_refused(fake, folder, monkeypatch):
    with results.opened(folder / "results.jsonl"), pytest.raises(ValueError, match="another run writes"):
        run(folder)
    assert run(folder, limit=1).done == 1, "and allowed again when the first has ended"


def where_memory_is_short_a_smaller_batch_is_tried(fake, folder, monkeypatch):
    def too_large(batch_size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    fake.answers = {1: too_large, 2: too_large, 4: too_large, 5: too_large, 6: too_large, 7: too_large}
    summary = run(folder, batch_size=8, limit=2)
    assert fake.batches == [8, 4, 2, 8, 4, 2, 1]
    first, second = map(json.loads, lines(folder))
    assert first["status"] == "done" and first["facts"]["batch sizes"] == [8, 4, 2]
    assert second["status"] == "failed" and "one sequence at a time" in second["reason"]
    assert (summary.done, summary.failed) == (1, 1)


def the_report_has_nothing_of_ours_that_was_not_measured(fake, folder, monkeypatch):
    fake.dense = DENSE + 0.03
    run(folder, limit=4)  # the dense model, and the three seeds of one signal at 10%
    table = list(csv.DictReader(io.StringIO(report.as_csv(results.read(folder / "results.jsonl")))))
    assert len(table) > 100 and tuple(table[0]) == report.COLUMNS
    own = [line for line in table if line["table"] == "1" and line["model"] == "OPT-125M"]
    dense, normalized, raw, *others = sorted(own, key=lambda line: int(line["slicing_percent"]))
    assert (float(dense["paper_value"]), float(dense["our_value"])) == (DENSE, DENSE + 0.03)
    assert float(dense["difference"]) == pytest.approx(0.03)
    assert (normalized["signal"], raw["signal"], normalized["seeds"]) == ("normalized", "raw", "3")
    assert float(normalized["our_value"]) == pytest.approx(DENSE + 0.03 + 10 + 1 / 8)
    assert float(normalized["spread_over_seeds"]) == pytest.approx(1 / 8)
    for line in (raw, *others):
        assert line["our_value"] == line["difference"] == line["spread_over_seeds"] == "", line
        assert float(line["paper_value"]) > 0
        assert line["status"] == ("printed only" if line["row"].startswith("sparsegpt") else "not run")
    five = [line for line in table if line["table"] == "5" and line["our_value"]]
    assert [line["slicing_percent"] for line in five] == ["0"], "the dense model is table 5's, too"
    text = report.markdown(results.read(folder / "results.jsonl"))
    assert f"| OPT-125M | 0% | dense | 27.67 *paper {DENSE}* +0.03 | done |" in text
    assert "| not run *paper 34.53* | not run |" in text and "27.67 ± " not in text


PROPERTIES = {
    check.__name__: check
    for check in (
        goes_on_behind_a_line_that_was_cut,
        runs_nothing_twice,
        another_setting_revision_or_commit_is_another_result,
        a_failed_row_is_told_and_the_rest_goes_on,
        an_interrupted_run_goes_on,
        the_gate_stops_where_the_dense_model_is_not_the_papers,
        what_is_no_number_is_a_failure,
        two_runs_into_one_file_are_refused,
        where_memory_is_short_a_smaller_batch_is_tried,
        the_report_has_nothing_of_ours_that_was_not_measured,
    )
}


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["values"].update(perplexity=None),
        lambda record: record["values"].update(perplexity=[1.0]),
        lambda record: record["facts"].update(seconds={"all": None}),
        lambda record: record["facts"].update(calibration=0),
        lambda record: record["profile"].update(samples=None),
        lambda record: record["setting"].update(mine=1),
        lambda record: record.update(family="mine"),
    ],
)
def test_a_record_with_other_contents_is_not_reported(change, fake, tmp_path):
    run(tmp_path, limit=2)
    first, second = map(json.loads, lines(tmp_path))
    change(second)
    (tmp_path / "results.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl is not a results file of minislice: line 2: "):
        report.write(tmp_path / "results.jsonl", tmp_path / "report.md")
    assert not list(tmp_path.glob("report.*"))


def test_a_folder_that_only_has_the_name_of_ours_is_not_deleted(fake, tmp_path):
    work = tmp_path / ".results.jsonl.work"
    work.mkdir()
    (work / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"that `reproduce\.py` left; move it away"):
        run(tmp_path)
    assert [path.name for path in work.iterdir()] == ["thesis.txt"] and not fake.asked


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_loop_and_its_report(name, fake, tmp_path, monkeypatch):
    PROPERTIES[name](fake, tmp_path, monkeypatch)


def _replaced(function, old, new):
    """A function of the package with a piece of its source replaced."""
    import inspect
    import sys

    source = inspect.getsource(function)
    assert old in source, f"{function.__name__} no longer has {old!r}"
    module = sys.modules[function.__module__]
    scope = dict(vars(module))
    exec(compile("from __future__ import annotations\n" + source.replace(old, new), "planted", "exec"), scope)
    return scope[function.__name__]


MISTAKES = {
    "the cut line stays": (
        "goes_on_behind_a_line_that_was_cut",
        lambda: (records, "_cut", lambda path: None),
    ),
    "the file is emptied where a line was cut": (
        "goes_on_behind_a_line_that_was_cut",
        lambda: (records, "_cut", _replaced(records._cut, "os.truncate(path, whole)", "os.truncate(path, 0)")),
    ),
    "a finished key is run again": (
        "runs_nothing_twice",
        lambda: (runner, "_finished", lambda found, setting: None),
    ),
    "the key forgets the seed": (
        "another_setting_revision_or_commit_is_another_result",
        lambda: (results, "key_of", _replaced(results.key_of, "asdict(setting)", "{**asdict(setting), 'seed': 0}")),
    ),
    "the key forgets the commit": (
        "another_setting_revision_or_commit_is_another_result",
        lambda: (results, "key_of", _replaced(results.key_of, ", commit]", "]")),
    ),
    "a failure counts as finished": (
        "a_failed_row_is_told_and_the_rest_goes_on",
        lambda: (runner, "_run", _replaced(runner._run, '"failed"', '"done"')),
    ),
    "an interruption is taken for a failure": (
        "an_interrupted_run_goes_on",
        lambda: (runner, "_run", _replaced(runner._run, "except Exception", "except BaseException")),
    ),
    "a gate that never stops": (
        "the_gate_stops_where_the_dense_model_is_not_the_papers",
        lambda: (runner, "check_gate", lambda *arguments: None),
    ),
    "a gate ten times as wide": (
        "the_gate_stops_where_the_dense_model_is_not_the_papers",
        lambda: (runner, "GATES", {"perplexity": ("perplexity", 0.5)}),
    ),
    "a gate that looks upwards only": (
        "the_gate_stops_where_the_dense_model_is_not_the_papers",
        lambda: (runner, "check_gate", _replaced(runner.check_gate, "abs(ours - papers)", "ours - papers")),
    ),
    "a gate that always stops": (
        "the_gate_stops_where_the_dense_model_is_not_the_papers",
        lambda: (runner, "check_gate", _replaced(runner.check_gate, "tolerance + 1e-9", "-1")),
    ),
    "NaN is a value": (
        "what_is_no_number_is_a_failure",
        lambda: (runner, "_run", _replaced(runner._run, "not math.isfinite(value)", "False")),
    ),
    "no lock": (
        "two_runs_into_one_file_are_refused",
        lambda: (records, "alone", lambda path: contextlib.nullcontext()),
    ),
    "memory that is short ends the row": (
        "where_memory_is_short_a_smaller_batch_is_tried",
        lambda: (runner, "with_what_fits", lambda attempt, batch_size: attempt(batch_size)),
    ),
    "the paper's value shown as ours": (
        "the_report_has_nothing_of_ours_that_was_not_measured",
        lambda: (
            cells_module,
            "_cell",
            _replaced(
                cells_module._cell,
                "paper, None, None, None, status=NOT_RUN",
                "paper, paper, None, None, status=NOT_RUN",
            ),
        ),
    ),
    "ours and the paper's exchanged": (
        "the_report_has_nothing_of_ours_that_was_not_measured",
        lambda: (report, "as_csv", _replaced(report.as_csv, '"our_value": cell.ours', '"our_value": cell.paper')),
    ),
    "the variance for the standard deviation": (
        "the_report_has_nothing_of_ours_that_was_not_measured",
        lambda: (cells_module, "_cell", _replaced(cells_module._cell, "statistics.stdev", "statistics.variance")),
    ),
    "a sparse model's row taken for ours": (
        "the_report_has_nothing_of_ours_that_was_not_measured",
        lambda: (cells_module, "_cell", _replaced(cells_module._cell, 'status="printed only"', 'status="not run"')),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake, fake, tmp_path, monkeypatch):
    name, plant = MISTAKES[mistake]
    monkeypatch.setattr(*plant())
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyboardInterrupt, ValueError, StopIteration)):
        PROPERTIES[name](fake, tmp_path, monkeypatch)


# Where it runs


def test_what_does_not_fit_is_skipped_with_its_reason_and_products_always_fit():
    small = preflight.Machine("cpu", 16 << 30, 16 << 30, 32 << 30, 1 << 40)
    own = runner.settings_of(rows("llama-2", PROFILES["paper"], [1, 2, 12], ["70B"]), "float16")
    reasons = {setting.measure: preflight.why_not(setting, small, stream=False) for setting in own}
    assert "138 GB" in reasons["perplexity"] or "179 GB" in reasons["perplexity"]
    assert reasons["products"] is None and "276 GB" in reasons["inference"]
    eight = preflight.Machine("cuda:0", 80 << 30, 640 << 30, 512 << 30, 1 << 40)
    assert all(preflight.why_not(s, eight, stream=True) is None for s in own if s.measure == "perplexity")
    (phi,) = runner.settings_of(rows("phi-2", PROFILES["paper"], [7], None)[:1], "float16")
    assert preflight.why_not(phi, small, stream=False) is None


def test_the_signal_is_what_the_paper_needs_room_for():
    """1024 x 2048 tokens of float16 are 17 GB at 7B, 21 GB at 13B."""
    for size, gigabytes in {"7B": 17.2, "13B": 21.5}.items():
        setting = runner.settings_of(rows("llama-2", PROFILES["paper"], [1], [size]), "float16")[-1]
        assert preflight.needs(setting)[1] / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_the_command_for_several_processes_is_one_that_minislice_takes(tmp_path):
    made = bench._slicing_of(runner.settings_of(rows("llama-2", PROFILES["paper"], [1], ["70B"]), "float16")[-1])
    command = slice_command(made, tmp_path / "out", 4, 8)
    assert command[1:3] == ["-m", "torch.distributed.run"]
    torchrun = get_args_parser().parse_args(command[3:])
    assert (torchrun.nproc_per_node, torchrun.module, torchrun.training_script) == ("8", True, "minislice")
    given = parser_for(COMMANDS).parse_args(torchrun.training_script_args)
    assert given.stream and given.run is COMMANDS["slice"].run
    assert (given.model, given.slicing, given.samples, given.seqlen) == (made.source, 0.3, 1024, 2048)
    assert (given.adapter, given.signal, given.dtype, given.seed) == ("full", made.signal, "float16", made.seed)


def test_a_failed_process_says_why():
    import sys

    script = "import sys; print('noise\\nminislice: no such model\\nmore', file=sys.stderr); sys.exit(2)"
    with pytest.raises(ValueError, match=r"minislice: no such model$"):
        bench.run_processes([sys.executable, "-c", script])


# For real, on an embedded model


@pytest.fixture(scope="module")
def small_profile():
    return dataclasses.replace(
        profile_for("llama-2", "ci"), windows=4, seeds=1, samples=dict.fromkeys((128, 1024, 2048), 8)
    )


def test_streamed_and_in_memory_are_the_same_and_leave_nothing_behind(tmp_path, small_profile):
    own = [row for row in rows("llama-2", small_profile, [1]) if row.percent in (0, 30)]
    found = []
    for stream in (False, True):
        out = tmp_path / f"{stream}.jsonl"
        options = {"family": "llama-2", "profile": small_profile, "say": lambda line: None, "stream": stream}
        assert runner.reproduce(own, out, **options).done == 2
        found.append([record["values"]["perplexity"] for record in results.read(out)])
        assert sorted(path.name for path in tmp_path.iterdir() if "lock" not in path.name)[-1] == out.name
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0][0] < found[0][1]
    assert not list(tmp_path.glob(".*.work"))


def test_the_perplexity_recorded_is_that_of_minislice_called_by_hand(tmp_path, small_profile):
    from minislice.corpus.text import load_text, sample, tokenize, windows

    own = [row for row in rows("llama-2", small_profile, [1]) if row.percent == 30]
    runner.reproduce(own, tmp_path / "r.jsonl", family="llama-2", profile=small_profile, say=lambda line: None)
    (record,) = results.read(tmp_path / "r.jsonl")
    model, tokenizer = minislice.load("mini-llama", dtype=torch.float32)
    dense = minislice.parameters(model)
    calibration = sample(tokenize(load_text("embedded"), tokenizer), 8, 128, seed=0)
    minislice.slice_model(model, calibration, slicing=0.3, adapter="full", head="own")
    evaluation = windows(tokenize(load_text("embedded", "test"), tokenizer), 128, 4)
    assert record["values"]["perplexity"] == pytest.approx(minislice.perplexity(model, evaluation), rel=1e-9)
    facts = record["facts"]
    assert facts["parameters"] == minislice.parameters(model) and facts["dense parameters"] == dense
    assert facts["widths"] == model.slicing.widths and facts["calibration"]["tokens"] == provenance.hash_of(calibration)
    assert record["revision"] == provenance.revision("mini-llama") and record["facts"]["batch sizes"] == [8]
    assert {"slice", "perplexity", "all"} <= facts["seconds"].keys()


def test_zero_shot_and_recovery_are_asked_as_the_setting_says(tmp_path, small_profile, monkeypatch):
    asked = {}

    def recover(model, tokens, **options):
        asked["recover"] = (tuple(tokens.shape), options)
        return type("Report", (), {"steps": 2})()

    def zero_shot(model, tokenizer, tasks, **options):
        items = Path(options["tasks_from"], "piqa.jsonl").read_text()
        asked["zero_shot"] = (tasks, options["limit"], len(items.splitlines()))
        score = type("Score", (), {"task": "piqa", "accuracy": 60.0, "stderr": 5.0, "metric": "acc", "count": 20})()
        return type("Found", (), {"scores": [score], "mean": 60.0, "stderr": 5.0})()

    monkeypatch.setattr(minislice, "recover", recover, raising=False)
    monkeypatch.setattr(minislice, "zero_shot", zero_shot, raising=False)
    own = [row for row in rows("llama-2", small_profile, [9]) if row.percent == 20]
    runner.reproduce(own, tmp_path / "r.jsonl", family="llama-2", profile=small_profile, say=lambda line: None)
    (record,) = results.read(tmp_path / "r.jsonl")
    assert record["status"] == "done", record["reason"]
    assert record["values"] == {"piqa": 60.0, "average": 60.0} and record["errors"] == {"piqa": 5.0, "average": 5.0}
    assert asked["zero_shot"] == (("piqa", "arc_easy"), 20, 100)
    assert asked["recover"] == ((12, 64), {"batch_size": 8, "seed": 0, "steps": 2})
    assert record["facts"]["recovery"]["steps"] == 2 and record["facts"]["metrics"] == {"piqa": "acc, 20 items"}


def test_the_cost_of_a_row_is_measured_beside_the_dense_model(tmp_path, small_profile):
    own = rows("llama-2", small_profile, [11, 12])
    own = [row for row in own if row.percent in (0, 25)]
    runner.reproduce(own, tmp_path / "r.jsonl", family="llama-2", profile=small_profile, say=lambda line: None)
    records = results.read(tmp_path / "r.jsonl")
    assert [record["revision"] for record in records] == ["random weights"] * 2
    every = cells_module.cells("llama-2", small_profile, records)
    speed = {cell.row.percent: cell.ours for cell in every if cell.metric == "tokens_per_second" and cell.ours}
    total = {cell.row.percent: cell.ours for cell in every if cell.metric == "total" and cell.ours}
    assert speed.keys() == total.keys() == {0, 25} and min(*speed.values(), *total.values()) > 0
    values = next(record["values"] for record in records if "total" in record["values"])
    parts = {"down_proj": 1, "up_or_gate_proj": 2, "k_or_v": 2, "q": 1, "out": 1}
    assert values["dense_total"] == pytest.approx(sum(n * values[f"dense_{name}"] for name, n in parts.items()))
    assert values["total_ratio"] == pytest.approx(values["total"] / values["dense_total"])


# The command line


def test_the_command_and_its_report(tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    command = ["reproduce", "opt", "--profile", "ci", "--tables", "5", "--rows", "2", "--out", str(out)]
    assert run_script(reproduce, [*command[1:], "--eval-samples", "2", "--samples", "32"]) == 0
    printed = capsys.readouterr().out
    assert "[1/9] mini-opt dense: perplexity" in printed and "[2/9] mini-opt 10%, seed 0" in printed
    assert run_script(report, [str(out), "--out", str(tmp_path / "report.md"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["csv"].endswith("report.csv")
    text = (tmp_path / "report.md").read_text()
    assert (
        "## mini-opt, in OPT's place" in text
        and "| *paper" not in text
        and "*paper" not in text.split("## mini-opt")[1]
    )
    assert text.count("| not run |") > 5 and "embedded 4 x 128" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reproduce", "opt", "--tables", "12", "--out", "r.jsonl"], "isn't in table 12"),
        (["reproduce", "phi-2", "--tables", "1", "--out", "r.jsonl"], "Phi-2 isn't in table 1"),
        (["reproduce", "opt", "--tables", "one", "--out", "r.jsonl"], "takes numbers"),
        (["reproduce", "opt", "--models", "9B", "--out", "r.jsonl"], "no model '9B'"),
        (["reproduce", "opt", "--processes", "2", "--out", "r.jsonl"], "--stream"),
        (
            ["reproduce", "opt", "--seeds", "1000000000", "--out", "r.jsonl"],
            "seeds must be a whole number from 1 to 100",
        ),
        (["reproduce", "opt", "--signals", "loud", "--out", "r.jsonl"], "normalized"),
        (["reproduce", "opt", "--out", "nowhere/r.jsonl"], "no folder"),
        (["reproduce", "opt", "--profile", "ci", "--out", "notes.txt"], "isn't a results file"),
        (["report", "absent.jsonl", "--out", "report.md"], "no results"),
        (["report", "notes.txt", "--out", "report.md"], "line 1"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("This is no\nresults file.\n")
    script, *others = arguments
    assert run_script({"reproduce": reproduce, "report": report}[script], others) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text() == "This is no\nresults file.\n"
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"notes.txt"}


@pytest.mark.parametrize("name", ["reproduce", "report"])
def test_minislice_says_where_a_script_is(name, capsys):
    assert main([name, "opt"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and (Path(__file__).parents[1] / said.split()[-2]).is_file()


def test_under_torchrun_it_is_refused(tmp_path, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    add_command(parser, reproduce)
    arguments = parser.parse_args(["opt", "--out", str(tmp_path / "r.jsonl")])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun"):
        arguments.run(arguments)


def test_a_model_that_is_not_there_is_a_row_that_says_so(tmp_path, capsys):
    out = tmp_path / "r.jsonl"
    assert run_script(reproduce, ["opt", "--tables", "1", "--models", "125M", "--rows", "1", "--out", str(out)]) == 0
    (record,) = results.read(out)
    assert record["status"] == "failed" and "facebook/opt-125m" in record["reason"]
    assert run_script(report, [str(out), "--out", str(tmp_path / "report.md"), "--quiet"]) == 0
    assert "not run *paper 27.64*" in (tmp_path / "report.md").read_text()
