"""What the paper's tables ask for: every row as a specification of how to measure it, with what the paper printed.

A `Row` is a row of a table; a `Setting` is everything that decides one measurement. A row has several settings (seeds,
signals), and tables share some: the dense model is measured once for tables 1 and 5.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minislice.adapters import FORMS
from minislice.checks import option, require_choice, require_int
from minislice.corpus.embedded import SEQLEN, paper_table
from minislice.measuring.zero_shot import TASKS
from minislice.pca import SIGNALS

DECIDES = {  # by measure, in the order of measuring: the fields of a profile that decide its result
    "perplexity": ("wikitext2", "seqlen", "eval_samples"),
    "zero-shot": ("tasks", "tasks_from", "limit"),
    "products": ("adapter", "repeats"),
    "inference": ("adapter", "length", "rounds"),
    "time": (),
}
SLICING = ("adapter", "samples", "seqlen")  # the fields that also decide the result of a sliced model
RECOVERY = ("recovery_samples", "recovery_seqlen", "recovery_steps")  # and of a recovered one
PAIRED = ("products", "inference")  # costs: the dense model's are measured beside the sliced one's, in one run
OF_SHAPES = (*PAIRED, "time")  # measured on random weights of the same shapes


@dataclass(frozen=True)
class Table:
    """What one of the paper's tables measures."""

    measure: str  # one of DECIDES
    label: str  # tells rows of one model and level apart; in braces stand printed columns
    title: str
    metrics: tuple[str, ...]  # its columns; "..._ratio" is sliced over dense
    text: str = "wikitext2"  # that calibrates
    samples: int = 1024  # of 2048 tokens
    recovered: bool = False  # by fine-tuning on the same text


PERPLEXITY, ACCURACIES, MINUTES = ("perplexity",), (*TASKS, "average"), ("slicing_minutes", "rft_minutes")
LATENCY = ("ms_per_token", "ms_per_token_ratio")
THROUGHPUT = ("tokens_per_second", "batch_size", "tokens_per_second_ratio")
# Table 12's columns, each the mean of the linears that a LLaMA calls so.
PRODUCTS = {"down_proj": ("down_proj",), "up_or_gate_proj": ("up_proj", "gate_proj"), "k_or_v": ("k_proj", "v_proj")}
PRODUCTS |= {"q": ("q_proj",), "out": ("o_proj",), "total": ("total",)}
MILLISECONDS, GPUS, H100 = (*PRODUCTS, "total_ratio"), "{slicing_gpus}, {rft_gpus}", "{gpus:.0f}xH100-80GB"
ON, ACCURACY, METHOD = "WikiText-2 perplexity, calibrated on", "zero-shot accuracy in percent", "{method}"
TABLES = {
    1: Table("perplexity", METHOD, f"{ON} 1024 x 2048 tokens of WikiText-2", PERPLEXITY),
    2: Table("inference", "{gpus:.0f}x{gpu}", "milliseconds a token, 128 generated one by one", LATENCY),
    3: Table("time", GPUS, "minutes of slicing at 30% and of recovery, Alpaca", MINUTES, "alpaca", recovered=True),
    5: Table("perplexity", METHOD, f"{ON} 128 x 2048 tokens of it", PERPLEXITY, samples=128),
    7: Table("zero-shot", "", f"{ACCURACY}, calibrated on WikiText-2", ACCURACIES),
    8: Table("zero-shot", "", f"{ACCURACY}, calibrated on Alpaca", ACCURACIES, "alpaca"),
    9: Table("zero-shot", "", f"{ACCURACY}, WikiText-2, after recovery fine-tuning", ACCURACIES, recovered=True),
    10: Table("zero-shot", "", f"{ACCURACY}, Alpaca, after recovery fine-tuning", ACCURACIES, "alpaca", recovered=True),
    11: Table("inference", H100, "tokens a second, 128 tokens generated, the largest batch that fits", THROUGHPUT),
    12: Table("products", METHOD, "milliseconds of each matrix product of one layer, 2048 tokens", MILLISECONDS),
}
SLIPS = {  # in print: (table, model, slicing, column)
    (8, "Phi-2", 30, "average"): "slip in print: the five tasks average 59.23",
    (10, "LLAMA-2-13B", 30, "average"): "slip in print: the five tasks average 66.25",
}
# By the method of a table without a column of levels; table 3 has neither. SparseGPT leaves 2 of 4 weights.
PERCENT = {"dense": 0, "sparsegpt_2:4": 50, "slicegpt_25": 25, "slicegpt_50": 50, "": 30}
GATES = {"perplexity": ("perplexity", 0.05), "zero-shot": ("average", 0.5)}  # metric and tolerance, by measure
ONE_SEED = ("OPT-30B", "OPT-66B", "LLAMA-2-70B")  # models above 13B are sliced once


@dataclass(frozen=True)
class Family:
    """The models of one notebook."""

    title: str
    sources: dict[str, str]  # the paper's name: where its weights are on the hub
    stand_in: str  # the embedded model of the same architecture

    def tables(self) -> list[int]:
        return [number for number in TABLES if any(line["model"] in self.sources for line in paper_table(number))]


OPT_SIZES, LLAMA_SIZES = ("125M", "1.3B", "2.7B", "6.7B", "13B", "30B", "66B"), ("7B", "13B", "70B")
FAMILIES = {
    "opt": Family("OPT", {f"OPT-{size}": f"facebook/opt-{size.lower()}" for size in OPT_SIZES}, "mini-opt"),
    "llama-2": Family(
        "LLaMA-2", {f"LLAMA-2-{size}": f"meta-llama/Llama-2-{size.lower()}-hf" for size in LLAMA_SIZES}, "mini-llama"
    ),
    "phi-2": Family("Phi-2", {"Phi-2": "microsoft/phi-2"}, "mini-phi"),
}


@dataclass(frozen=True)
class Profile:
    """How a family's tables are run: as the paper did, by default; lists are comma-separated."""

    family: str
    name: str = "paper"
    model: str | None = option(None, "in place of the paper's models, without its values: embedded, a folder, a name")
    wikitext2: str = option("wikitext2", "in its place, a file: the first half calibrates, the second is measured on")
    alpaca: str = option("alpaca", "in its place, a file: the first half calibrates")
    samples: int = option(1024, "calibration sequences for the paper's 1024; an eighth for its 128")
    seqlen: int = option(2048, "tokens of a sequence")
    eval_samples: int | None = option(None, "windows to measure perplexity on (default: all)")
    recovery_samples: int = option(1000, "sequences for the paper's 1000 of WikiText-2; five times as many of Alpaca")
    recovery_seqlen: int = option(1024, "tokens of each")
    recovery_steps: int | None = option(None, "(default: one pass over the sequences)")
    seeds: int = option(3, "of models up to 13B; others have one")
    signals: str = option("normalized,raw", "of perplexity; zero-shot tasks take the first")
    adapter: str = option("full", "form of the residual adapters")
    dtype: str = option("auto", "auto is float16 on a GPU, float32 on a CPU")
    tasks: str = option(",".join(TASKS), "of tables 7 to 10")
    tasks_from: str | None = option(None, "a folder with local copies of them, TASK.jsonl")
    limit: int | None = option(None, "items of each task (default: all)")
    length: int = 128  # tokens generated, for the cost
    rounds: int = 5
    repeats: int = 1000  # of a matrix product

    def __post_init__(self):
        require_choice("family", self.family, FAMILIES)
        require_int("seeds", self.seeds, most=100)
        require_choice("adapter", self.adapter, FORMS)
        require_choice("dtype", self.dtype, ("auto", "float32", "float16", "bfloat16", "float64"))
        for name, choices in {"signals": SIGNALS, "tasks": TASKS}.items():
            for value in getattr(self, name).split(","):
                require_choice(name, value, choices)

    @property
    def is_papers(self) -> bool:
        """Whether what it measures may stand beside what the paper printed."""
        return self.model is None

    @property
    def stand_in(self) -> str:
        return Path(self.model).name

    def only(self, *names: str) -> "Profile":
        """The same models and dtype, these fields, and the paper's values in all others."""
        return Profile(**{name: getattr(self, name) for name in ("family", "model", "dtype", *names)})


PROFILES = {  # how they differ from the paper
    "paper": {},
    "ci": {  # the same rows on a small stand-in, in seconds
        "wikitext2": "embedded",
        "alpaca": "embedded",
        "samples": 32,
        "seqlen": SEQLEN // 2,
        "eval_samples": 16,
        "recovery_samples": 12,
        "recovery_seqlen": 64,
        "recovery_steps": 2,
        "seeds": 2,
        "signals": "normalized",
        "tasks": "piqa",
        "tasks_from": str(Path(__file__).with_name("items")),
        "length": 4,
        "rounds": 1,
        "repeats": 3,
    },
}


@dataclass(frozen=True)
class Setting:
    """Everything that decides one measurement; with revision and commit it is a result's key."""

    model: str  # the paper's name
    measure: str
    percent: int  # slicing; 0 is the dense model
    how: Profile  # with this table's number of sequences; a field that decides nothing here has the paper's value
    seed: int = 0
    signal: str | None = None  # None where nothing is sliced by it
    text: str | None = None  # that calibrates, and trains
    recovered: bool = False

    def __str__(self) -> str:
        sliced = f", {Path(self.text).name} {self.how.samples} x {self.how.seqlen}" if self.text else ""
        sliced += f", {self.signal}, seed {self.seed}" if self.signal else ""
        recovered = f", recovered on {self.how.recovery_samples}" if self.recovered else ""
        return f"{self.model} {f'{self.percent}%' if self.percent else 'dense'}{sliced}{recovered}"

    @property
    def source(self) -> str:
        """Where its weights are; of a cost, its shape."""
        paper = self.model.lower() if self.measure in OF_SHAPES else FAMILIES[self.how.family].sources.get(self.model)
        return self.how.model or paper

    @property
    def slicing(self) -> "Setting":
        """The same for all settings that measure the same sliced (or dense) model."""
        how = self.how.only(*(SLICING if self.percent else ()))
        return replace(self, measure="slicing", how=how, recovered=False)


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables."""

    table: int
    model: str
    percent: int
    paper: dict[str, float | None]  # what is printed, by column of the table; of a stand-in's row None
    label: str  # tells rows of one model and level apart
    settings: tuple[Setting, ...]  # none for another method's row, which is only printed

    @property
    def dense(self) -> bool:
        """Whether it is a dense model's cost, which is measured beside the sliced one's."""
        return self.percent == 0 and TABLES[self.table].measure in PAIRED


def profile_for(family: str, name: str = "paper", device: str = "cpu", **changes) -> Profile:
    """A profile for a family, in the dtype for a device, with some fields changed; "ci" is its embedded model's."""
    require_choice("family", family, FAMILIES)
    require_choice("profile", name, PROFILES)
    stand_in = {"model": FAMILIES[family].stand_in} if name == "ci" else {}
    profile = Profile(family, name, **(PROFILES[name] | stand_in | changes))
    dtype = "float32" if torch.device(device).type == "cpu" else "float16"
    return replace(profile, dtype=profile.dtype.replace("auto", dtype))


def rows(profile: Profile, tables: Iterable[int] | None = None, models: Iterable[str] | None = None) -> list[Row]:
    """The rows of a family's tables, in the order in which they are run: model by model, dense before sliced.

    All of them by default; `models` are the paper's names, or their ends ("7B").
    """
    family = FAMILIES[profile.family]
    tables = family.tables() if tables is None else list(tables)
    if missing := [number for number in tables if number not in family.tables()]:
        numbers = ", ".join(map(str, family.tables()))
        raise ValueError(f"{family.title} isn't in table {missing[0]}; minislice runs its rows of tables {numbers}")
    known = {word.lower(): name for name in family.sources for word in (name, name.split("-")[-1])}
    models = list(family.sources) if models is None else list(models)
    if missing := [model for model in models if model.lower() not in known]:
        names = ", ".join(family.sources)
        raise ValueError(f"no model {missing[0]!r} in the paper's {family.title}; there are {names}")
    names = [known[model.lower()] for model in models] if profile.is_papers else [profile.stand_in]

    def place(row: Row) -> tuple:
        return names.index(row.model), list(DECIDES).index(TABLES[row.table].measure), row.percent, row.table

    return sorted((row for number in tables for row in _rows_of(profile, number) if row.model in names), key=place)


def settings_of(rows: Iterable[Row]) -> list[Setting]:
    """The settings of the rows, each once; those that measure the same model follow one another, to slice it once."""
    by_slicing: dict[Setting, dict[Setting, None]] = {}
    for setting in (setting for row in rows for setting in row.settings):
        by_slicing.setdefault(setting.slicing, {})[setting] = None
    return [setting for settings in by_slicing.values() for setting in settings]


def _rows_of(profile: Profile, number: int) -> Iterator[Row]:
    table, sources = TABLES[number], FAMILIES[profile.family].sources
    lines = [line for line in paper_table(number) if line["model"] in sources]
    if not profile.is_papers:  # the levels of one model on one GPU
        lines = [line for line in lines if all(line.get(name) == lines[0].get(name) for name in ("model", "gpu"))]
    metrics = {*profile.tasks.split(",")} if table.measure == "zero-shot" else {*table.metrics}
    if metrics >= {*TASKS} or not profile.is_papers:
        metrics.add("average")  # the mean of other tasks isn't the paper's
    for line in lines:
        model, method, label = line["model"], line.get("method", ""), table.label.format(**line)
        percent, is_others = int(line.get("slicing_percent", PERCENT.get(method))), method.startswith("sparsegpt")
        printed = {name.removeprefix("wikitext2_"): value for name, value in line.items()}
        if table.measure in PAIRED and percent == 0:
            dense = printed  # the following lines are compared with it
        elif table.measure in PAIRED:
            cost = table.metrics[-1].removesuffix("_ratio")
            printed[f"{cost}_ratio"] = printed[cost] / dense[cost]
        paper = {metric: printed[metric] for metric in table.metrics if metric in metrics & printed.keys()}
        if not profile.is_papers:
            model, paper, label = profile.stand_in, dict.fromkeys(paper), ""
        settings = () if is_others else _settings(profile, table, model, percent)
        if settings or profile.is_papers:
            yield Row(number, model, percent, paper, label, settings)


def _settings(profile: Profile, table: Table, model: str, percent: int) -> tuple[Setting, ...]:
    samples = 2048 if (model, table.text) == ("Phi-2", "alpaca") else table.samples  # as table 3 says
    recovery = profile.recovery_samples * (5 if table.text == "alpaca" else 1)
    profile = replace(profile, samples=max(1, profile.samples * samples // 1024), recovery_samples=recovery)
    fields, signals = DECIDES[table.measure], profile.signals.split(",")
    if table.measure in PAIRED or percent == 0:
        beside = 25 if table.measure in PAIRED else 0  # the sliced model beside which a dense one's cost is measured
        return (Setting(model, table.measure, percent or beside, profile.only(*fields)),)
    how = profile.only(*fields, *SLICING, *(RECOVERY if table.recovered else ()))
    text = None if table.measure == "time" else getattr(profile, table.text)
    return tuple(
        Setting(model, table.measure, percent, how, seed, signal, text, table.recovered)
        for signal in (signals if table.measure == "perplexity" else signals[:1])
        for seed in range(1 if model in ONE_SEED or table.measure == "time" else profile.seeds)
    )
