"""One measurement of the protocol, from loading to the number."""

import copy
import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from items import written_tasks
from protocol import Setting
from provenance import hash_of
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minislice.checks import require_package
from minislice.corpus.text import SOURCES, load_text, sample, tokenize, windows
from minislice.large.streaming import slice_streamed
from minislice.likelihood import perplexity
from minislice.measuring.cost import parameters
from minislice.measuring.shapes import SHAPES, random_model, sliced_config
from minislice.measuring.timing import compare, product_milliseconds
from minislice.options import SlicingOptions
from minislice.slicing import slice_model
from minislice.storage.checkpoint import load, load_config, load_tokenizer, locate

MARK = "made-by-reproduce"  # in the folder of sliced models: what has it may be deleted
# Table 12's columns, of the names that a LLaMA has for its linears.
PRODUCT_COLUMNS = {
    "down_proj": ("down_proj",),
    "up_or_gate_proj": ("up_proj", "gate_proj"),
    "k_or_v": ("k_proj", "v_proj"),
    "q": ("q_proj",),
    "out": ("o_proj",),
    "total": ("total",),
    "adapter": ("adapter",),
}


@dataclass
class Outcome:
    """What one setting gave."""

    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # standard errors, by the name of the value
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.facts.setdefault("seconds", {})[what] = round(time.perf_counter() - began, 3)


@dataclass
class Bench:
    """Where settings are measured: one device, and a folder for models that are sliced by streaming.

    Settings that follow each other and share a sliced model share its slicing.
    """

    device: str
    work: Path | None = None
    stream: bool = False  # slice from disk, one layer in memory, and spread the result over all devices
    processes: int = 1  # that share the calibration set of a streamed slicing, each on a GPU of its own
    _streams: dict[tuple[str, ...], Tensor] = field(default_factory=dict)  # of tokens, by model, text and split
    _kept: tuple[Setting, PreTrainedModel, PreTrainedTokenizerBase, dict] | None = None

    def __post_init__(self):
        if self.work is not None and self.work.exists() and not (self.work / MARK).is_file():
            raise ValueError(f"{self.work} isn't a folder that `reproduce.py` left; move it away")

    def measure(self, setting: Setting, batch_size: int) -> Outcome:
        """Measure one setting, with `batch_size` sequences a forward pass."""
        outcome = Outcome()
        if setting.measure in _OF_SHAPES:
            _OF_SHAPES[setting.measure](setting, self.device, batch_size, outcome)
            return outcome
        model, tokenizer = self._model(setting, batch_size, outcome)
        if setting.recovery:
            self._kept = None  # it is trained in place
            _recover(
                model, self.tokens(setting, setting.recovery, "calibration", tokenizer), setting, batch_size, outcome
            )
        outcome.facts["parameters"] = parameters(model)
        with outcome.timed(setting.measure):
            if setting.measure == "perplexity":
                tokens = self.evaluation(setting, tokenizer)
                outcome.facts["evaluation"] = _described(setting.evaluation, tokens)
                outcome.values["perplexity"] = perplexity(model, tokens, batch_size=batch_size)
            else:
                _zero_shot(model, tokenizer, setting, batch_size, outcome)
        return outcome

    def tokens(self, setting: Setting, text: str, split: str, tokenizer) -> Tensor:
        """A text's tokens; of a file, which has no splits, the first half calibrates, the second is measured on."""
        name = (setting.source, text, split)
        if name not in self._streams:
            stream = tokenize(load_text(text, split), tokenizer)
            if text not in SOURCES:
                half = len(stream) // 2
                stream = stream[:half] if split == "calibration" else stream[half:]
            self._streams[name] = stream
        return self._streams[name]

    def calibration(self, setting: Setting, tokenizer) -> Tensor:
        """The windows that the principal components are of."""
        stream = self.tokens(setting, setting.calibration, "calibration", tokenizer)
        return sample(stream, setting.samples, setting.seqlen, setting.seed)

    def evaluation(self, setting: Setting, tokenizer) -> Tensor:
        """The windows that perplexity is measured on."""
        return windows(self.tokens(setting, setting.evaluation, "test", tokenizer), setting.seqlen, setting.windows)

    def forget(self) -> None:
        """Let the model of the last setting go, from memory and disk."""
        self._kept = None
        if self.work is not None and (self.work / MARK).is_file():
            shutil.rmtree(self.work)

    def _model(self, setting: Setting, batch_size: int, outcome: Outcome):
        """The model that a setting asks for, sliced but not recovered, and its tokenizer."""
        made = _slicing_of(setting)
        if self._kept is None or self._kept[0] != made:
            self._kept = None
            self._kept = (made, *self._made(made, batch_size, outcome), outcome.facts)
        outcome.facts = copy.deepcopy(self._kept[3]) | outcome.facts
        return self._kept[1:3]

    def _made(self, made: Setting, batch_size: int, outcome: Outcome):
        if self.stream and made.percent:
            return self._streamed(made, batch_size, outcome)
        with outcome.timed("load"):
            place = "auto" if self.stream else self.device
            model, tokenizer = load(made.source, dtype=getattr(torch, made.dtype), device=place)
        if tokenizer is None:
            raise ValueError(f"{made.source} has no tokenizer beside it")
        outcome.facts["dense parameters"] = parameters(model)
        if made.percent:
            tokens = self.calibration(made, tokenizer)
            outcome.facts["calibration"] = _described(made.calibration, tokens)
            with outcome.timed("slice"):
                slice_model(model, tokens, batch_size=batch_size, **_options(made))
            outcome.facts |= {"widths": model.slicing.widths, "ranks": model.slicing.ranks}
        return model, tokenizer

    def _streamed(self, made: Setting, batch_size: int, outcome: Outcome):
        tokenizer = load_tokenizer(locate(made.source))
        tokens = self.calibration(made, tokenizer)
        outcome.facts["calibration"] = _described(made.calibration, tokens)
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
                    slice_streamed(made.source, tokens, out, batch_size=batch_size, **machine, **_options(made))
        with outcome.timed("load"):
            model, tokenizer = load(out, device="auto" if torch.cuda.is_available() else self.device)
        outcome.facts["widths"] = list(model.config.widths)
        return model, tokenizer


def slice_command(made: Setting, out: Path, batch_size: int, processes: int) -> list[str]:
    """The command by which several processes slice a model from its files."""
    options = {
        "calibration": made.calibration,
        "samples": made.samples,
        "seqlen": made.seqlen,
        "seed": made.seed,
        "slicing": made.percent / 100,
        "signal": made.signal,
        "adapter": made.adapter,
        "head": "own",
        "dtype": made.dtype,
        "batch-size": batch_size,
        "out": out,
        # A file's first half calibrates, where its second is measured on.
        **({} if made.calibration in SOURCES else {"evaluation": made.calibration}),
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # Behind "--" torchrun looks for no option of its own; --signal could be short for one.
    return [*torchrun, "-m", "--", "minislice", "slice", made.source, "--stream", *words, "--json", "--quiet"]


def run_processes(command: list[str]) -> None:
    """Run it to its end.

    Raises:
        ValueError: it failed; what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("minislice: ")]
        raise ValueError(f"slicing by several processes failed: {said[0] if said else done.stderr.strip()[-300:]}")


def _slicing_of(setting: Setting) -> Setting:
    """What two settings have in common when one sliced model serves both."""
    nothing = {
        f.name: f.default for f in dataclasses.fields(Setting) if f.name.startswith(("recovery", "task", "evaluation"))
    }
    seqlen = setting.seqlen if setting.percent else None
    return dataclasses.replace(setting, **nothing, measure="slicing", windows=None, limit=None, seqlen=seqlen)


def _options(setting: Setting) -> dict[str, Any]:
    """Of `slice_model`."""
    changes = {"signal": setting.signal, "adapter": setting.adapter, "seed": setting.seed}
    return vars(SlicingOptions.paper(slicing=setting.percent / 100, **changes))


def _described(text: str, tokens: Tensor) -> dict[str, Any]:
    return {"text": Path(text).name, "tokens": hash_of(tokens), "sequences": len(tokens), "seqlen": tokens.shape[1]}


def _recover(model, stream: Tensor, setting: Setting, batch_size: int, outcome: Outcome) -> None:
    from minislice import recover

    tokens = sample(stream, setting.recovery_samples, setting.recovery_seqlen, setting.seed)
    steps = {} if setting.recovery_steps is None else {"steps": setting.recovery_steps}
    with outcome.timed("recover"):
        report = recover(model, tokens, batch_size=batch_size, seed=setting.seed, **steps)
    outcome.facts["recovery"] = {**_described(setting.recovery, tokens), "steps": report.steps}


def _zero_shot(model, tokenizer, setting: Setting, batch_size: int, outcome: Outcome) -> None:
    from minislice import zero_shot

    with written_tasks(setting.tasks, setting.tasks_from) as folder:
        found = zero_shot(
            model, tokenizer, setting.tasks, limit=setting.limit, tasks_from=folder, batch_size=batch_size
        )
    for score in found.scores:
        outcome.values[score.task], outcome.errors[score.task] = score.accuracy, score.stderr
        outcome.facts.setdefault("metrics", {})[score.task] = f"{score.metric}, {score.count} items"
    outcome.values["average"], outcome.errors["average"] = found.mean, found.stderr


def _config(setting: Setting) -> PreTrainedConfig:
    return SHAPES.get(setting.source) or load_config(locate(setting.source))


def _pair(setting: Setting, config: PreTrainedConfig, device: str) -> dict[str, PreTrainedModel]:
    machine = {"dtype": getattr(torch, setting.dtype), "device": device}
    options = SlicingOptions.paper(slicing=setting.percent / 100, adapter=setting.adapter)
    sliced = sliced_config(config, **vars(options))
    return {"dense": random_model(config, **machine), "sliced": random_model(sliced, **machine)}


def _inference(setting: Setting, device: str, batch_size: int, outcome: Outcome) -> None:
    """Tables 2 and 11, of both models in one run."""
    models = _pair(setting, _config(setting), device)
    with outcome.timed("inference"):
        found = compare(**models, length=setting.length, prompt=setting.length, rounds=setting.rounds)
    names = {"ms_per_token": "decoding, ms a token", "tokens_per_second": "tokens a second", "batch_size": "batch"}
    for name, quantity in names.items():
        pair = found[quantity]
        outcome.values |= {f"dense_{name}": pair.dense, name: pair.sliced, f"{name}_ratio": pair.ratio}
    outcome.facts |= {
        "dense parameters": found["parameters"].dense,
        "parameters": found["parameters"].sliced,
        "FLOPs a token, ratio": found["FLOPs a token"].ratio,
    }


def _products(setting: Setting, device: str, batch_size: int, outcome: Outcome) -> None:
    """Table 12; the middle one of three layers is like any other of the model, and needs no room for all."""
    config = copy.deepcopy(_config(setting))
    config.num_hidden_layers = 3
    models = _pair(setting, config, device)
    with outcome.timed("products"):
        found = product_milliseconds(models, tokens=_PRODUCT_TOKENS, repeats=setting.rounds)
    for model, products in found.items():
        for column, names in PRODUCT_COLUMNS.items():
            if measured := [products[name] for name in names if name in products]:
                prefix = "dense_" if model == "dense" else ""
                outcome.values[f"{prefix}{column}"] = sum(measured) / len(measured)
    outcome.values["total_ratio"] = outcome.values["total"] / outcome.values["dense_total"]


_PRODUCT_TOKENS = 2048  # table 12


def _time(setting: Setting, device: str, batch_size: int, outcome: Outcome) -> None:
    """Table 3: slicing, then recovery fine-tuning, of random weights on random tokens."""
    from minislice import recover

    require_package("peft", "recovery fine-tuning", "recover")
    config = _config(setting)
    model = random_model(config, dtype=getattr(torch, setting.dtype), device=device)
    generator = torch.Generator().manual_seed(setting.seed)

    def tokens(samples: int, seqlen: int) -> Tensor:
        return torch.randint(config.vocab_size, (samples, seqlen), generator=generator)

    with outcome.timed("slice"):
        slice_model(model, tokens(setting.samples, setting.seqlen), batch_size=batch_size, **_options(setting))
    steps = {} if setting.recovery_steps is None else {"steps": setting.recovery_steps}
    with outcome.timed("recover"):
        recover(model, tokens(setting.recovery_samples, setting.recovery_seqlen), batch_size=batch_size, **steps)
    seconds = outcome.facts["seconds"]
    outcome.values = {"slicing_minutes": seconds["slice"] / 60, "rft_minutes": seconds["recover"] / 60}


_OF_SHAPES = {"inference": _inference, "products": _products, "time": _time}
