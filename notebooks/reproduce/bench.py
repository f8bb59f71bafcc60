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
from minislice.architecture.modeling import without_memory
from minislice.architecture.network import network
from minislice.checks import require_package
from minislice.corpus.text import SOURCES, halves, load_text, sample, tokenize, windows
from minislice.measuring.provenance import hash_of
from minislice.measuring.shapes import SHAPES, random_model, sliced_config
from minislice.measuring.timing import inference_cost, product_milliseconds
from minislice.options import SlicingOptions
from minislice.storage.checkpoint import load_config, load_tokenizer, locate

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
    """Measures settings. Those that follow one another and have the same sliced model share its slicing."""

    device: str
    work: Path  # models sliced by streaming, folders KEY-by-BATCHSIZE; each stays until its rows are finished
    stream: bool = False  # slice from disk, one layer in memory, and spread the result over all devices
    process_count: int = 1  # that share the calibration set of a streamed slicing, each on a GPU of its own
    last: tuple | None = None  # the last slicing (see `Setting.slicing`), its model, and the outcome of making it

    def __post_init__(self):
        self.stream_of = functools.cache(stream_of)  # a text is tokenized once

    def let_go(self) -> None:
        """Free the last model's memory; a model refers to itself, so that only the collector frees it."""
        self.last = None
        gc.collect()
        torch.cuda.empty_cache()  # other processes slice on the same GPUs

    def begun(self, slicing: Setting) -> Path | None:
        """The folder KEY-by-BATCHSIZE of a slicing that an earlier run began; it is there if that run finished it."""
        key = key_of(slicing)
        for path in (*self.work.glob(f"{key}-by-*"), *self.work.glob(f".{key}-by-*.partial")):
            return path.with_name(path.name.strip(".").removesuffix(".partial"))
        return None

    def clear(self, slicing: Setting) -> None:
        """Delete a slicing from the disk, finished or not, and the folder with its last one."""
        for path in sorted(self.work.glob(f"*{key_of(slicing)}*")):
            # A killed run may leave half of the folder, and no run must go on with that.
            shutil.rmtree(path.rename(self.work / f"deleted-{path.name}"))
        with contextlib.suppress(OSError):  # there is no folder, or something else is in it
            self.work.rmdir()

    def measure(self, setting: Setting, batch_size: int) -> Outcome:
        if setting.measure in OF_SHAPES:
            cost = {"inference": inference, "products": products, "time": slicing_and_recovery}[setting.measure]
            self.let_go()  # a cost may be the largest batch that fits
            return cost(setting, self.device, batch_size)
        how, dense = setting.how, without_memory(load_config(locate(setting.source)))
        outcome = Outcome(facts={"batch size": batch_size, "dense parameters": minislice.parameters(dense)})
        # Slicing may take hours. What is needed only after it is looked for before it.
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

    def _model(self, slicing: Setting, tokens: Tensor | None, tokenizer, batch_size: int, outcome: Outcome):
        """The dense or sliced model."""
        if self.last is None or self.last[0] != slicing:
            self.let_go()
            making, source = Outcome(), slicing.source
            if slicing.percent:
                making.facts["sliced by batches of"] = batch_size
            if slicing.percent and self.stream:
                making.facts["streamed by"] = self.process_count
                with making.timed("slice"):
                    source = self._streamed(slicing, tokens, tokenizer, batch_size, making.facts)
            with making.timed("load"):
                place = "auto" if self.stream else self.device
                model, _ = minislice.load(source, dtype=slicing.how.dtype, device=place)
            if slicing.percent and not self.stream:
                with making.timed("slice"):
                    minislice.slice_model(model, tokens, batch_size=batch_size, **options(slicing))
            if slicing.percent:
                making.facts["widths"] = network(model).widths
            self.last = slicing, model, making
        _, model, making = self.last
        outcome.facts |= making.facts
        outcome.seconds |= making.seconds
        return model

    def _streamed(self, slicing: Setting, tokens: Tensor, tokenizer, batch_size: int, facts: dict[str, Any]) -> Path:
        """The folder of a sliced model, made now unless an earlier run made it; this run finishes an unfinished one."""
        begun = self.begun(slicing)
        if begun:  # it goes on with the same batch size; the seconds are this run's alone
            batch_size = int(begun.name.split("-by-")[1])
            facts |= {"sliced by batches of": batch_size, "slicing was begun earlier": True}
            if begun.is_dir():
                return begun
        else:
            self.clear(slicing)  # what a killed `clear` left
        out = begun or self.work / f"{key_of(slicing)}-by-{batch_size}"
        try:
            if self.process_count > 1:
                run_processes(slice_command(slicing, out, batch_size, self.process_count))
            else:
                how = options(slicing) | {"dtype": getattr(torch, slicing.how.dtype), "device": self.device}
                how |= {"batch_size": batch_size, "tokenizer": tokenizer}
                minislice.slice_streamed(slicing.source, tokens, out, **how)
        except torch.OutOfMemoryError as error:
            if begun:
                remedy = f"{self.work} keeps what was sliced by batches of {batch_size}: free memory, or delete it"
                raise ValueError(f"{remedy} ({error})") from error
            self.clear(slicing)  # it was begun with this batch size
            raise
        return out


def key_of(slicing: Setting) -> str:
    return results.key_of(slicing, results.revision_of(slicing))


def stream_of(source: str, text: str, split: str) -> Tensor:
    """A text as tokens. A file has no splits: its first half calibrates, its second is measured on."""
    stream = tokenize(load_text(text, split), load_tokenizer(locate(source)))
    return stream if text in SOURCES else halves(stream)[split != "calibration"]


@functools.cache
def rehearse(tasks: str, tasks_from: str | None) -> None:
    """Ask the smallest model one item of each task: it fails now where a package, a file or the hub is missing."""
    minislice.zero_shot(*minislice.load("mini-llama"), tasks.split(","), limit=1, tasks_from=tasks_from)


def options(setting: Setting) -> dict[str, Any]:
    level, signal = setting.percent / 100, setting.signal or "normalized"
    return vars(SlicingOptions.paper(slicing=level, adapter=setting.how.adapter, seed=setting.seed, signal=signal))


def slice_command(slicing: Setting, out: Path, batch_size: int, processes: int) -> list[str]:
    """The command by which several processes slice a model from its files."""
    named = {name: getattr(slicing.how, name) for name in ("samples", "seqlen", "adapter", "dtype")}
    named |= {"calibration": slicing.text, "seed": slicing.seed, "signal": slicing.signal, "head": "own"}
    named |= {"slicing": slicing.percent / 100, "batch-size": batch_size, "out": out}
    words = [str(word) for name, value in named.items() for word in (f"--{name}", value)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # Standalone: on a port that no other run has. After "--" torchrun takes no option, such as --signal, for its own.
    return [*torchrun, "-m", "--", "minislice", "slice", slicing.source, "--stream", *words, "--json", "--quiet"]


def run_processes(command: list[str]) -> None:
    """Run the command to its end; an error says why it failed, in the command's words."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("minislice: ")]
        reason = lines[0] if lines else done.stderr.strip()[-300:]
        error = torch.OutOfMemoryError if "out of memory" in reason else ValueError
        raise error(f"slicing by several processes failed: {reason}")


def recover(model, tokens: Tensor, setting: Setting, outcome: Outcome, **options) -> None:
    """Recovery fine-tuning, in place, with as many sequences a step as `recover` takes: memory must not change that."""
    with outcome.timed("recover"):
        report = minislice.recover(model, tokens, seed=setting.seed, steps=setting.how.recovery_steps, **options)
    outcome.facts["recovery steps"] = report.steps


def zero_shot(model, tokenizer, setting: Setting, batch_size: int, outcome: Outcome) -> None:
    how = setting.how
    chosen = {"limit": how.limit, "tasks_from": how.tasks_from, "batch_size": batch_size}
    measured = minislice.zero_shot(model, tokenizer, how.tasks.split(","), **chosen)
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
    recover(model, training, setting, outcome, patience=NEVER)  # random tokens teach nothing
    outcome.values = {"slicing_minutes": outcome.seconds["slice"] / 60, "rft_minutes": outcome.seconds["recover"] / 60}
    return outcome
