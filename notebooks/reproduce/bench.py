"""One measurement of the protocol, from loading to the number."""

import contextlib
import copy
import dataclasses
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from protocol import OF_SHAPES, Setting
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

import minislice
from minislice.checks import require_package
from minislice.corpus.embedded import stdlib_documents
from minislice.corpus.text import SOURCES, halves, load_text, sample, tokenize, windows
from minislice.measuring.provenance import hash_of
from minislice.measuring.shapes import SHAPES, random_model, sliced_config
from minislice.measuring.timing import inference_cost, product_milliseconds
from minislice.options import SlicingOptions
from minislice.storage.checkpoint import load_config, load_tokenizer, locate

MARK = "made-by-reproduce"  # in the folder of sliced models: what has it may be deleted
# Of table 12, with the names that a LLaMA has for its linears.
PRODUCTS = {"down_proj": ("down_proj",), "up_or_gate_proj": ("up_proj", "gate_proj"), "k_or_v": ("k_proj", "v_proj")}
PRODUCTS |= {"q": ("q_proj",), "out": ("o_proj",), "total": ("total",)}
BEGINNING, END = 16, 8  # words of an item that is made of the embedded text


@dataclass
class Outcome:
    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # standard errors, by the name of the value
    facts: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.facts.setdefault("seconds", {})[what] = round(time.perf_counter() - began, 3)


@dataclass
class Bench:
    """Where settings are measured; those that follow each other and share a sliced model share its slicing."""

    device: str
    work: Path | None = None  # a folder for models that are sliced by streaming
    stream: bool = False  # slice from disk, one layer in memory, and spread the result over all devices
    processes: int = 1  # that share the calibration set of a streamed slicing, each on a GPU of its own
    streams: dict[tuple[str, ...], Tensor] = field(default_factory=dict)  # of tokens, by model, text and split
    last: tuple | None = None  # the last slicing: its setting, model, tokenizer and facts

    def __post_init__(self):
        if self.work is not None and self.work.exists() and not (self.work / MARK).is_file():
            raise ValueError(f"{self.work} isn't a folder that `reproduce.py` left; move it away")

    def measure(self, setting: Setting, batch_size: int) -> Outcome:
        outcome = Outcome()
        if setting.measure in OF_SHAPES:
            cost = {"inference": inference, "products": products, "time": slicing_and_recovery}[setting.measure]
            cost(setting, self.device, batch_size, outcome)
            return outcome
        model, tokenizer = self._model(setting, batch_size, outcome)
        if setting.recovery:
            self.last = None  # the model is trained in place
            stream = self.tokens(setting, setting.recovery, "calibration", tokenizer)
            tokens = sample(stream, setting.recovery_samples, setting.recovery_seqlen, setting.seed)
            outcome.facts["recovery"] = described(setting.recovery, tokens)
            recover(model, tokens, setting, outcome)
        outcome.facts["parameters"] = minislice.parameters(model)
        with outcome.timed(setting.measure):
            if setting.measure == "perplexity":
                stream = self.tokens(setting, setting.evaluation, "test", tokenizer)
                tokens = windows(stream, setting.seqlen, setting.eval_samples)
                outcome.facts["evaluation"] = described(setting.evaluation, tokens)
                outcome.values["perplexity"] = minislice.perplexity(model, tokens, batch_size=batch_size)
            else:
                zero_shot(model, tokenizer, setting, batch_size, outcome)
        return outcome

    def tokens(self, setting: Setting, text: str, split: str, tokenizer) -> Tensor:
        """A text's tokens; of a file, which has no splits, the first half calibrates, the second is measured on."""
        name = (setting.source, text, split)
        if name not in self.streams:
            stream = tokenize(load_text(text, split), tokenizer)
            self.streams[name] = stream if text in SOURCES else halves(stream)[split != "calibration"]
        return self.streams[name]

    def forget(self) -> None:
        """Let the model of the last setting go, from memory and disk."""
        self.last = None
        if self.work is not None and (self.work / MARK).is_file():
            shutil.rmtree(self.work)

    def _model(self, setting: Setting, batch_size: int, outcome: Outcome):
        """The model that a setting asks for, sliced but not recovered, and its tokenizer."""
        made = slicing_of(setting)
        if self.last is None or self.last[0] != made:
            self.last = None
            tokenizer = load_tokenizer(locate(made.source))
            if tokenizer is None:
                raise ValueError(f"{made.source} has no tokenizer beside it")
            tokens = None
            if made.percent:
                stream = self.tokens(made, made.calibration, "calibration", tokenizer)
                tokens = sample(stream, made.samples, made.seqlen, made.seed)
                outcome.facts["calibration"] = described(made.calibration, tokens)
            make = self._streamed if self.stream and made.percent else self._in_memory
            self.last = (made, make(made, tokens, tokenizer, batch_size, outcome), tokenizer, outcome.facts)
        _, model, tokenizer, facts = self.last
        outcome.facts = copy.deepcopy(facts) | outcome.facts
        return model, tokenizer

    def _in_memory(self, made: Setting, tokens: Tensor | None, tokenizer, batch_size: int, outcome: Outcome):
        with outcome.timed("load"):
            place = "auto" if self.stream else self.device
            model, _ = minislice.load(made.source, dtype=made.dtype, device=place)
        outcome.facts["dense parameters"] = minislice.parameters(model)
        if tokens is not None:
            with outcome.timed("slice"):
                minislice.slice_model(model, tokens, batch_size=batch_size, **options(made))
            outcome.facts["widths"] = model.slicing.widths
        return model

    def _streamed(self, made: Setting, tokens: Tensor, tokenizer, batch_size: int, outcome: Outcome):
        outcome.facts["streamed by"] = self.processes
        out = self.work / f"{made.model}-{made.percent}-{made.signal}-{made.seed}-{hash_of(tokens)}"
        with outcome.timed("slice"):
            if not out.is_dir():  # else a run was killed between slicing and measuring
                for other in self.work.glob("[!.]*/"):
                    shutil.rmtree(other)  # of the setting before
                self.work.mkdir(exist_ok=True)
                (self.work / MARK).touch()
                if self.processes > 1:
                    run_processes(slice_command(made, out, batch_size, self.processes))
                else:
                    machine = {"dtype": getattr(torch, made.dtype), "device": self.device, "tokenizer": tokenizer}
                    minislice.slice_streamed(
                        made.source, tokens, out, batch_size=batch_size, **machine, **options(made)
                    )
        with outcome.timed("load"):
            model, _ = minislice.load(out, device="auto" if torch.cuda.is_available() else self.device)
        outcome.facts["widths"] = list(model.config.widths)
        return model


def slicing_of(setting: Setting) -> Setting:
    """What two settings have in common when one sliced model serves both."""
    others = ("recovery", "task", "evaluation", "eval_samples", "limit")
    nothing = {f.name: f.default for f in dataclasses.fields(Setting) if f.name.startswith(others)}
    seqlen = setting.seqlen if setting.percent else None
    return dataclasses.replace(setting, **nothing, measure="slicing", seqlen=seqlen)


def options(setting: Setting) -> dict[str, Any]:
    changes = {"signal": setting.signal, "adapter": setting.adapter, "seed": setting.seed}
    return vars(SlicingOptions.paper(slicing=setting.percent / 100, **changes))


def described(text: str, tokens: Tensor) -> str:
    return f"{Path(text).name} {len(tokens)} x {tokens.shape[1]} ({hash_of(tokens)})"


def slice_command(made: Setting, out: Path, batch_size: int, processes: int) -> list[str]:
    """The command by which several processes slice a model from its files."""
    named = {name: getattr(made, name) for name in ("calibration", "samples", "seqlen", "seed", "signal", "adapter")}
    named |= {"slicing": made.percent / 100, "head": "own", "dtype": made.dtype, "batch-size": batch_size, "out": out}
    if made.calibration not in SOURCES:
        named["evaluation"] = made.calibration  # a file's first half calibrates, where its second is measured on
    words = [str(word) for name, value in named.items() for word in (f"--{name}", value)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # Behind "--" torchrun looks for no option of its own; --signal could be short for one.
    return [*torchrun, "-m", "--", "minislice", "slice", made.source, "--stream", *words, "--json", "--quiet"]


def run_processes(command: list[str]) -> None:
    """Run it to its end; a ValueError has what it said where it failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("minislice: ")]
        raise ValueError(f"slicing by several processes failed: {said[0] if said else done.stderr.strip()[-300:]}")


def recover(model, tokens: Tensor, setting: Setting, outcome: Outcome) -> None:
    """Recovery fine-tuning, in place, with as many sequences a step as `recover` takes: memory must not change that."""
    steps = {} if setting.recovery_steps is None else {"steps": setting.recovery_steps}
    with outcome.timed("recover"):
        found = minislice.recover(model, tokens, seed=setting.seed, **steps)
    outcome.facts["recovery steps"] = found.steps


def zero_shot(model, tokenizer, setting: Setting, batch_size: int, outcome: Outcome) -> None:
    with tempfile.TemporaryDirectory() as made:
        if embedded := setting.tasks_from == "embedded":
            write_piqa(Path(made))
        asked = {"limit": setting.limit, "tasks_from": made if embedded else setting.tasks_from}
        tasks = setting.tasks.split(",")
        measured = minislice.zero_shot(model, tokenizer, tasks, batch_size=batch_size, **asked)
    for score in measured.scores:
        outcome.values[score.task], outcome.errors[score.task] = score.accuracy, score.stderr
        outcome.facts.setdefault("metrics", {})[score.task] = f"{score.metric}, {score.count} items"
    outcome.values["average"], outcome.errors["average"] = measured.mean, measured.stderr


def write_piqa(folder: Path, count: int = 100) -> None:
    """FOLDER/piqa.jsonl, the same on every run: beginnings from the embedded text, and which words go on from each."""
    draw, length = random.Random(0), BEGINNING + END
    texts = [words for text in stdlib_documents("test") if len(words := text.split()) > 4 * length]
    with open(folder / "piqa.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            starts = [(text, draw.randrange(len(text) - length)) for text in draw.sample(texts, 2)]
            pieces = [text[start : start + length] for text, start in starts]
            first, second = (" ".join(piece[BEGINNING:]) for piece in pieces)
            goal = " ".join(pieces[number % 2][:BEGINNING])
            file.write(json.dumps({"goal": goal, "sol1": first, "sol2": second, "label": number % 2}) + "\n")


# The cost of a shape, with random weights


def pair(setting: Setting, device: str, layers: int | None = None) -> dict[str, PreTrainedModel]:
    """A dense model and a sliced one, of so many layers."""
    config = copy.deepcopy(config_of(setting))
    config.num_hidden_layers = layers or config.num_hidden_layers
    chosen = SlicingOptions.paper(slicing=setting.percent / 100, adapter=setting.adapter)
    configs = {"dense": config, "sliced": sliced_config(config, **vars(chosen))}
    dtype = getattr(torch, setting.dtype)
    return {name: random_model(config, dtype=dtype, device=device) for name, config in configs.items()}


def config_of(setting: Setting) -> PreTrainedConfig:
    return SHAPES.get(setting.source) or load_config(locate(setting.source))


def inference(setting: Setting, device: str, batch_size: int, outcome: Outcome) -> None:
    """Tables 2 and 11, of both models in one run."""
    models = pair(setting, device)
    with outcome.timed("inference"):
        costs = inference_cost(**models, length=setting.length, prompt=setting.length, rounds=setting.rounds)
    names = {"ms_per_token": "decoding, ms a token", "tokens_per_second": "tokens a second", "batch_size": "batch"}
    for name, quantity in names.items():
        both = costs[quantity]
        outcome.values |= {f"dense_{name}": both.dense, name: both.sliced, f"{name}_ratio": both.ratio}
    outcome.facts |= {"dense parameters": costs["parameters"].dense, "parameters": costs["parameters"].sliced}


def products(setting: Setting, device: str, batch_size: int, outcome: Outcome) -> None:
    """Table 12; the middle one of three layers is like any other of the model, and needs no room for all."""
    models = pair(setting, device, layers=3)
    with outcome.timed("products"):
        times = product_milliseconds(models, tokens=2048, repeats=setting.rounds)
    for prefix, milliseconds in (("dense_", times["dense"]), ("", times["sliced"])):
        for column, names in PRODUCTS.items():
            if measured := [milliseconds[name] for name in names if name in milliseconds]:
                outcome.values[f"{prefix}{column}"] = sum(measured) / len(measured)
    outcome.values["total_ratio"] = outcome.values["total"] / outcome.values["dense_total"]


def slicing_and_recovery(setting: Setting, device: str, batch_size: int, outcome: Outcome) -> None:
    """Table 3: slicing, then recovery fine-tuning, of random weights on random tokens."""
    require_package("peft", "recovery fine-tuning", "recover")
    config = config_of(setting)
    model = random_model(config, dtype=getattr(torch, setting.dtype), device=device)
    generator = torch.Generator().manual_seed(setting.seed)
    tokens = torch.randint(config.vocab_size, (setting.samples, setting.seqlen), generator=generator)
    with outcome.timed("slice"):
        minislice.slice_model(model, tokens, batch_size=batch_size, **options(setting))
    shape = (setting.recovery_samples, setting.recovery_seqlen)
    recover(model, torch.randint(config.vocab_size, shape, generator=generator), setting, outcome)
    seconds = outcome.facts["seconds"]
    outcome.values = {"slicing_minutes": seconds["slice"] / 60, "rft_minutes": seconds["recover"] / 60}
