"""One measurement of the protocol, from loading to the number."""

import contextlib
import copy
import functools
import gc
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import results
import torch
from protocol import OF_SHAPES, PRODUCTS, Setting
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

import minislice
from minislice.architecture.folder import whole_file
from minislice.architecture.modeling import without_memory
from minislice.architecture.network import network
from minislice.checks import require_package
from minislice.corpus.text import SOURCES, halves, load_text, sample, tokenize, windows
from minislice.measuring.provenance import hash_of
from minislice.measuring.shapes import SHAPES, random_model, sliced_config
from minislice.measuring.timing import inference_cost, product_milliseconds
from minislice.options import SlicingOptions
from minislice.storage.checkpoint import load_config, load_tokenizer, locate

MARK = "made-by-reproduce"  # a folder with this file may be deleted; each line is a slicing's key and its batch size
NEVER = 10**9  # a patience


@dataclass
class Outcome:
    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # standard errors, by the name of the value
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # that each step took

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - began, 3)


@dataclass
class Bench:
    """Where settings are measured; those that follow each other and share a sliced model share its slicing."""

    device: str
    work: Path  # a folder for what is sliced by streaming; each stays until its rows are finished
    stream: bool = False  # slice from disk, one layer in memory, and spread the result over all devices
    process_count: int = 1  # that share the calibration set of a streamed slicing, each on a GPU of its own
    last: tuple | None = None  # the last slicing (see `Setting.slicing`), its model, and the outcome of making it

    def __post_init__(self):
        self.stream_of = functools.cache(stream_of)  # a text is tokenized once
        if self.work.exists() and not (self.work / MARK).is_file():
            raise ValueError(f"{self.work} isn't a folder that `reproduce.py` left; move it away")

    def let_go(self) -> None:
        """Let the last model's memory go; what refers to itself, as models do, waits for the collector."""
        self.last = None
        gc.collect()
        torch.cuda.empty_cache()  # other processes slice on the same GPUs

    def begun(self) -> dict[str, int]:
        """The batch size of each slicing in the folder, finished or not, by its key."""
        lines = (self.work / MARK).read_text("utf-8").splitlines() if self.work.is_dir() else []
        return {key: int(size) for key, size in map(str.split, lines)}

    def mark(self, begun: dict[str, int]) -> None:
        with whole_file(self.work / MARK) as new:
            new.write_text("".join(f"{key} {size}\n" for key, size in begun.items()), "utf-8")

    def clear(self, made: Setting) -> None:
        """Delete a slicing from the folder, and the folder with its last one."""
        if not self.work.is_dir():
            return
        key, begun = key_of(made), self.begun()
        begun.pop(key, None)
        if not begun:
            shutil.rmtree(self.work)
            return
        self.mark(begun)
        for path in self.work.glob(f"*{key}*"):  # finished, or what `slice_streamed` goes on with
            shutil.rmtree(path)

    def kept(self, made: Setting) -> int:
        """Bytes that other slicings have in the folder."""
        if not (made.text and self.work.is_dir()):
            return 0
        key = key_of(made)
        return sum(file.stat().st_size for file in self.work.rglob("*") if key not in str(file))

    def measure(self, setting: Setting, batch_size: int) -> Outcome:
        if setting.measure in OF_SHAPES:
            cost = {"inference": inference, "products": products, "time": slicing_and_recovery}[setting.measure]
            self.let_go()  # the largest batch that fits is asked for
            return cost(setting, self.device, batch_size)
        how, dense = setting.how, without_memory(load_config(locate(setting.source)))
        outcome = Outcome(facts={"batch size": batch_size, "dense parameters": minislice.parameters(dense)})
        # What is needed only behind the slicing, which may take hours, is looked for before it.
        tokenizer = load_tokenizer(locate(setting.source))
        if tokenizer is None:
            raise ValueError(f"{setting.source} has no tokenizer beside it")
        if setting.measure == "zero-shot" and setting.percent:
            rehearse(how.tasks, how.tasks_from)
        if setting.recovered:
            require_package("peft", "recovery fine-tuning", "recover")
        tokens = self.tokens(setting, outcome)
        model = self._model(setting.slicing, tokens.get("calibration"), tokenizer, batch_size, outcome)
        if setting.recovered:
            self.last = None  # the model is trained in place
            recover(model, tokens["recovery"], setting, outcome)
        outcome.facts["parameters"] = minislice.parameters(model)
        with outcome.timed(setting.measure):
            if setting.measure == "perplexity":
                outcome.values["perplexity"] = minislice.perplexity(model, tokens["evaluation"], batch_size=batch_size)
            else:
                zero_shot(model, tokenizer, setting, batch_size, outcome)
        return outcome

    def tokens(self, setting: Setting, outcome: Outcome) -> dict[str, Tensor]:
        """Every set of tokens that a setting needs."""
        how, sets = setting.how, {}
        if setting.text:
            stream = self.stream_of(setting.source, setting.text, "calibration")
            sets["calibration"] = sample(stream, how.samples, how.seqlen, setting.seed)
            if setting.recovered:
                sets["recovery"] = sample(stream, how.recovery_samples, how.recovery_seqlen, setting.seed)
        if setting.measure == "perplexity":
            stream = self.stream_of(setting.source, how.wikitext2, "test")
            sets["evaluation"] = windows(stream, how.seqlen, how.eval_samples)
        for name, tokens in sets.items():
            text = Path(how.wikitext2 if name == "evaluation" else setting.text).name
            outcome.facts[name] = f"{text} {len(tokens)} x {tokens.shape[1]} ({hash_of(tokens)})"
        return sets

    def _model(self, made: Setting, tokens: Tensor | None, tokenizer, batch_size: int, outcome: Outcome):
        """The dense or sliced model."""
        if self.last is None or self.last[0] != made:
            self.let_go()
            making, source = Outcome(), made.source
            if made.percent:
                making.facts["sliced by batches of"] = batch_size
            if made.percent and self.stream:
                making.facts["streamed by"] = self.process_count
                with making.timed("slice"):
                    source = self._streamed(made, tokens, tokenizer, batch_size, making.facts)
            with making.timed("load"):
                place = "auto" if self.stream else self.device
                model, _ = minislice.load(source, dtype=made.how.dtype, device=place)
            if made.percent and not self.stream:
                with making.timed("slice"):
                    minislice.slice_model(model, tokens, batch_size=batch_size, **options(made))
            if made.percent:
                making.facts["widths"] = network(model).widths
            self.last = made, model, making
        _, model, making = self.last
        outcome.facts |= making.facts
        outcome.seconds |= making.seconds
        return model

    def _streamed(self, made: Setting, tokens: Tensor, tokenizer, batch_size: int, facts: dict[str, Any]) -> Path:
        """The folder of a sliced model, made now unless an earlier run made it; an unfinished one is gone on with."""
        out, begun = self.work / key_of(made), self.begun()
        is_begun = out.name in begun
        if is_begun:  # what goes on has the same batch size; the seconds are this run's alone
            batch_size = begun[out.name]
            facts |= {"sliced by batches of": batch_size, "slicing was begun earlier": True}
            if out.is_dir():
                return out
        else:
            self.clear(made)  # what a killed `clear` left
            self.work.mkdir(exist_ok=True)
            self.mark(begun | {out.name: batch_size})
        try:
            if self.process_count > 1:
                run_processes(slice_command(made, out, batch_size, self.process_count))
            else:
                machine = {"dtype": getattr(torch, made.how.dtype), "device": self.device, "tokenizer": tokenizer}
                minislice.slice_streamed(made.source, tokens, out, batch_size=batch_size, **machine, **options(made))
        except torch.OutOfMemoryError as error:
            if is_begun:
                told = f"{self.work} keeps what was sliced by batches of {batch_size}: free memory, or delete it"
                raise ValueError(f"{told} ({error})") from error
            self.clear(made)  # it was begun with this batch size
            raise
        return out


def key_of(made: Setting) -> str:
    return results.key_of(made, results.revision_of(made))


def stream_of(source: str, text: str, split: str) -> Tensor:
    """A text as tokens; of a file, which has no splits, the first half calibrates, the second is measured on."""
    stream = tokenize(load_text(text, split), load_tokenizer(locate(source)))
    return stream if text in SOURCES else halves(stream)[split != "calibration"]


@functools.cache
def rehearse(tasks: str, tasks_from: str | None) -> None:
    """Ask the smallest model one item of each task, so that a package, a file or a hub that is missing is told now."""
    minislice.zero_shot(*minislice.load("mini-llama"), tasks.split(","), limit=1, tasks_from=tasks_from)


def options(setting: Setting) -> dict[str, Any]:
    level, signal = setting.percent / 100, setting.signal or "normalized"
    return vars(SlicingOptions.paper(slicing=level, adapter=setting.how.adapter, seed=setting.seed, signal=signal))


def slice_command(made: Setting, out: Path, batch_size: int, processes: int) -> list[str]:
    """The command by which several processes slice a model from its files."""
    named = {name: getattr(made.how, name) for name in ("samples", "seqlen", "adapter", "dtype")}
    named |= {"calibration": made.text, "seed": made.seed, "signal": made.signal, "slicing": made.percent / 100}
    named |= {"head": "own", "batch-size": batch_size, "out": out}
    if made.text not in SOURCES:
        named["evaluation"] = made.text  # a file's first half calibrates, where its second is measured on
    words = [str(word) for name, value in named.items() for word in (f"--{name}", value)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # Standalone: on a port that no other run has. Behind "--" torchrun looks for no option of its own, as --signal.
    return [*torchrun, "-m", "--", "minislice", "slice", made.source, "--stream", *words, "--json", "--quiet"]


def run_processes(command: list[str]) -> None:
    """Run it to its end; an error has what it said where it failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("minislice: ")]
        said = lines[0] if lines else done.stderr.strip()[-300:]
        error = torch.OutOfMemoryError if "out of memory" in said else ValueError
        raise error(f"slicing by several processes failed: {said}")


def recover(model, tokens: Tensor, setting: Setting, outcome: Outcome, **options) -> None:
    """Recovery fine-tuning, in place, with as many sequences a step as `recover` takes: memory must not change that."""
    with outcome.timed("recover"):
        report = minislice.recover(model, tokens, seed=setting.seed, steps=setting.how.recovery_steps, **options)
    outcome.facts["recovery steps"] = report.steps


def zero_shot(model, tokenizer, setting: Setting, batch_size: int, outcome: Outcome) -> None:
    how = setting.how
    asked = {"limit": how.limit, "tasks_from": how.tasks_from, "batch_size": batch_size}
    measured = minislice.zero_shot(model, tokenizer, how.tasks.split(","), **asked)
    for score in measured.scores:
        outcome.values[score.task], outcome.errors[score.task] = score.accuracy, score.stderr
    outcome.values["average"], outcome.errors["average"] = measured.mean, measured.stderr
    outcome.facts["metrics"] = {score.task: f"{score.metric}, {score.count} items" for score in measured.scores}


# The cost of a shape, with random weights


def config_of(setting: Setting) -> PreTrainedConfig:
    return SHAPES.get(setting.source) or load_config(locate(setting.source))


def pair(setting: Setting, device: str, layers: int | None = None) -> dict[str, PreTrainedModel]:
    """A dense model and a sliced one, of so many layers."""
    config = copy.deepcopy(config_of(setting))
    config.num_hidden_layers = layers or config.num_hidden_layers
    configs = {"dense": config, "sliced": sliced_config(config, **options(setting))}
    dtype = getattr(torch, setting.how.dtype)
    return {name: random_model(config, dtype=dtype, device=device) for name, config in configs.items()}


def inference(setting: Setting, device: str, batch_size: int) -> Outcome:
    """Tables 2 and 11."""
    how, values = setting.how, {}
    costs = inference_cost(**pair(setting, device), length=how.length, prompt=how.length, rounds=how.rounds)
    names = {"ms_per_token": "decoding, ms a token", "tokens_per_second": "tokens a second", "batch_size": "batch"}
    for name, quantity in names.items():
        both = costs[quantity]
        values |= {f"dense_{name}": both.dense, name: both.sliced, f"{name}_ratio": both.ratio}
    sizes = costs["parameters"]
    return Outcome(values, facts={"dense parameters": sizes.dense, "parameters": sizes.sliced})


def products(setting: Setting, device: str, batch_size: int) -> Outcome:
    """Table 12; the middle one of three layers is like any other of the model, and needs no room for all."""
    times, values = product_milliseconds(pair(setting, device, 3), tokens=2048, repeats=setting.how.repeats), {}
    for prefix, milliseconds in (("dense_", times["dense"]), ("", times["sliced"])):
        for column, names in PRODUCTS.items():
            if measured := [milliseconds[name] for name in names if name in milliseconds]:
                values[f"{prefix}{column}"] = sum(measured) / len(measured)
    return Outcome(values | {"total_ratio": values["total"] / values["dense_total"]})


def slicing_and_recovery(setting: Setting, device: str, batch_size: int) -> Outcome:
    """Table 3: slicing, then recovery fine-tuning, of random weights on random tokens."""
    require_package("peft", "recovery fine-tuning", "recover")
    how, config, outcome = setting.how, config_of(setting), Outcome()
    model = random_model(config, dtype=getattr(torch, how.dtype), device=device)
    calibration = torch.randint(config.vocab_size, (how.samples, how.seqlen))
    training = torch.randint(config.vocab_size, (how.recovery_samples, how.recovery_seqlen))
    with outcome.timed("slice"):
        minislice.slice_model(model, calibration, batch_size=batch_size, **options(setting))
    recover(model, training, setting, outcome, patience=NEVER)  # nothing is to be learned from random tokens
    outcome.values = {"slicing_minutes": outcome.seconds["slice"] / 60, "rft_minutes": outcome.seconds["recover"] / 60}
    return outcome
