"""What the paper's tables ask for: every row as a specification of how to measure it, with what the paper printed.

A `Row` is a row of a table; a `Setting` is everything that decides one measurement. A row has several settings (seeds,
signals), and tables share some: the dense model is measured once for tables 1 and 5.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minislice.checks import require_choice, require_int
from minislice.corpus.embedded import SEQLEN, paper_table
from minislice.measuring.zero_shot import TASKS
from minislice.pca import SIGNALS

PERPLEXITY = {1: 1024, 5: 128}  # table: calibration sequences
ZERO_SHOT = {7: ("wikitext2", False), 8: ("alpaca", False), 9: ("wikitext2", True), 10: ("alpaca", True)}
COST = {2: "inference", 3: "time", 11: "inference", 12: "products"}
TABLES = tuple(sorted((*PERPLEXITY, *ZERO_SHOT, *COST)))
METRICS = {  # the columns of each table
    **dict.fromkeys(PERPLEXITY, ("perplexity",)),
    **dict.fromkeys(ZERO_SHOT, (*TASKS, "average")),
    2: ("ms_per_token", "ms_per_token_ratio"),
    3: ("slicing_minutes", "rft_minutes"),
    11: ("tokens_per_second", "batch_size", "tokens_per_second_ratio"),
    12: ("down_proj", "up_or_gate_proj", "k_or_v", "q", "out", "total", "total_ratio"),
}
COMPARED = {2: "ms_per_token", 11: "tokens_per_second", 12: "total"}  # table: the cost that is given as a ratio too
SLIPS = {  # in print: (table, model, slicing, column)
    (8, "Phi-2", 30, "average"): "slip in print: the five tasks average 59.23",
    (10, "LLAMA-2-13B", 30, "average"): "slip in print: the five tasks average 66.25",
}
GATES = {"perplexity": ("perplexity", 0.05), "zero-shot": ("average", 0.5)}  # measure: its gate's metric, how far off
ONE_SEED = ("OPT-30B", "OPT-66B", "LLAMA-2-70B")  # models above 13B are sliced once
ORDER = ("perplexity", "zero-shot", "products", "inference", "time", None)  # of measures, for one model


@dataclass(frozen=True)
class Family:
    """The models of one notebook."""

    title: str
    sources: dict[str, str]  # the paper's name: where its weights are on the hub
    stand_in: str  # the embedded model of the same architecture
    licence: str

    def tables(self) -> list[int]:
        """The tables that have a row of one of these models."""
        return [number for number in TABLES if any(row["model"] in self.sources for row in paper_table(number))]


OPT_SIZES = ("125M", "1.3B", "2.7B", "6.7B", "13B", "30B", "66B")
FAMILIES = {
    "opt": Family(
        "OPT",
        {f"OPT-{size}": f"facebook/opt-{size.lower()}" for size in OPT_SIZES},
        "mini-opt",
        "OPT's licence allows research, not commerce",
    ),
    "llama-2": Family(
        "LLaMA-2",
        {f"LLAMA-2-{size}": f"meta-llama/Llama-2-{size.lower()}-hf" for size in ("7B", "13B", "70B")},
        "mini-llama",
        "Meta's licence must be accepted on the hub, with the account whose token HF_TOKEN is",
    ),
    "phi-2": Family("Phi-2", {"Phi-2": "microsoft/phi-2"}, "mini-phi", "MIT"),
}


@dataclass(frozen=True)
class Profile:
    """How the tables are run: "paper", as the paper did; "ci", the same rows on a small stand-in, in seconds."""

    name: str
    texts: dict[str, tuple[str, str]]  # the paper's name of a text: sources that calibrate and that are measured on
    samples: dict[int, int]  # the paper's number of sequences: ours
    seqlen: int = 2048
    windows: int | None = None  # of the evaluation text; None is all
    recovery_samples: dict[str, int] = field(default_factory=lambda: {"wikitext2": 1000, "alpaca": 5000})
    recovery_seqlen: int = 1024
    recovery_steps: int | None = None  # None is one pass over them
    seeds: int = 3  # of models up to 13B
    signals: tuple[str, ...] = ("normalized", "raw")  # for perplexity; zero-shot tasks take the first
    adapter: str = "full"  # the paper's form
    dtype: str = "auto"  # float16 on a GPU, float32 on a CPU
    tasks: tuple[str, ...] = TASKS
    tasks_from: str | None = None  # a folder of local copies; "embedded" has minislice write some
    limit: int | None = None  # items of a task
    length: int = 128  # tokens generated, for the cost
    rounds: int = 5
    repeats: int = 1000  # of a matrix product
    model: str | None = None  # a stand-in for the paper's models: embedded, a folder, or on the hub

    def __post_init__(self):
        require_int("seeds", self.seeds, most=100)
        for signal in self.signals:
            require_choice("signals", signal, SIGNALS)

    @property
    def is_papers(self) -> bool:
        """Whether what it measures may stand beside what the paper printed."""
        return self.model is None

    @property
    def stand_in(self) -> str:
        """The name of the stand-in in rows and report."""
        return Path(self.model).name

    @classmethod
    def from_json(cls, fields: dict) -> "Profile":
        """What `dataclasses.asdict` and JSON have made of one."""
        fields = _with_tuples(fields)
        fields["texts"] = {name: tuple(sources) for name, sources in fields["texts"].items()}
        fields["samples"] = {int(papers): ours for papers, ours in fields["samples"].items()}
        return cls(**fields)


PROFILES = {
    "paper": Profile(
        "paper",
        texts={"wikitext2": ("wikitext2", "wikitext2"), "alpaca": ("alpaca", "alpaca")},
        samples={128: 128, 1024: 1024, 2048: 2048},
    ),
    "ci": Profile(
        "ci",
        texts={"wikitext2": ("embedded", "embedded"), "alpaca": ("embedded", "embedded")},
        samples={128: 8, 1024: 24, 2048: 24},
        seqlen=SEQLEN // 2,
        windows=16,
        recovery_samples={"wikitext2": 12, "alpaca": 12},
        recovery_seqlen=64,
        recovery_steps=2,
        seeds=2,
        signals=("normalized",),
        tasks=("piqa", "arc_easy"),
        tasks_from="embedded",
        limit=20,
        length=4,
        rounds=1,
        repeats=3,
    ),
}


@dataclass(frozen=True)
class Setting:
    """Everything that decides one measurement, in JSON's types; with revision and commit it is a result's key."""

    model: str  # the paper's name
    source: str  # where its weights are; for the cost, the shape's name
    measure: str  # perplexity, zero-shot, inference, products or time
    percent: int  # slicing; 0 is the dense model
    dtype: str
    seed: int = 0
    signal: str | None = None  # None, like what follows, where nothing is sliced or measured by it
    adapter: str | None = None
    calibration: str | None = None  # the text
    samples: int | None = None
    seqlen: int | None = None
    recovery: str | None = None  # the text of recovery fine-tuning
    recovery_samples: int | None = None
    recovery_seqlen: int | None = None
    recovery_steps: int | None = None
    evaluation: str | None = None
    windows: int | None = None
    tasks: tuple[str, ...] | None = None
    tasks_from: str | None = None
    limit: int | None = None
    length: int | None = None
    rounds: int | None = None

    @classmethod
    def from_json(cls, fields: dict) -> "Setting":
        """What `dataclasses.asdict` and JSON have made of one."""
        return cls(**_with_tuples(fields))


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables."""

    table: int
    model: str
    percent: int
    paper: dict[str, float]  # metric: printed
    label: str = ""  # what tells it from another row of the same model and level
    settings: tuple[Setting, ...] = ()  # none: the row is another method's, printed only
    dense: bool = False  # of a table of costs: its values are the dense model's, measured beside the sliced one

    @property
    def signals(self) -> list[str | None]:
        """The signals that its settings are sliced by."""
        return list(dict.fromkeys(setting.signal for setting in self.settings))


def profile_for(family: str, name: str = "paper", **changes) -> Profile:
    """A profile for a family; "ci" is that of its embedded model.

    Args:
        changes: fields of `Profile` that are to be others; None leaves a field as it is.

    Raises:
        ValueError: no such family or profile.
    """
    if family not in FAMILIES or name not in PROFILES:
        raise ValueError(
            f"no family {family!r} with a profile {name!r}; families are {', '.join(FAMILIES)}, profiles "
            f"{', '.join(PROFILES)}"
        )
    stand_in = {"model": FAMILIES[family].stand_in} if name == "ci" else {}
    return replace(PROFILES[name], **stand_in | {field: value for field, value in changes.items() if value is not None})


def rows(
    family: str, profile: Profile, tables: Iterable[int] | None = None, models: Iterable[str] | None = None
) -> list[Row]:
    """The rows of a family's tables, in the order in which they are run: model by model, dense before sliced.

    Args:
        tables: all that the family is in, by default.
        models: the paper's names, or their ends ("7B"); by default all.

    Raises:
        ValueError: no such table or model.
    """
    known = FAMILIES[family]
    tables = known.tables() if tables is None else list(tables)
    if missing := [number for number in tables if number not in known.tables()]:
        numbers = ", ".join(map(str, known.tables()))
        raise ValueError(f"{known.title} isn't in table {missing[0]}; minislice runs its rows of tables {numbers}")
    names = list(known.sources) if models is None else [_full_name(known, name) for name in models]
    if not profile.is_papers:
        names = [profile.stand_in]

    def place(row: Row) -> tuple:
        measure = row.settings[0].measure if row.settings else None
        return names.index(row.model), ORDER.index(measure), row.percent, row.table

    every = (row for number in tables for row in _table(known, profile, number))
    return sorted((row for row in every if row.model in names), key=place)


def settings_of(rows: Iterable[Row], dtype: str) -> list[Setting]:
    """The settings of the rows, each once, in the order of the rows, in the dtype that "auto" stands for."""
    every = dict.fromkeys(setting for row in rows for setting in row.settings)
    return [in_dtype(setting, dtype) for setting in every]


def in_dtype(setting: Setting, dtype: str) -> Setting:
    """The setting, with this dtype in place of "auto"."""
    return replace(setting, dtype=dtype) if setting.dtype == "auto" else setting


def _full_name(family: Family, name: str) -> str:
    for full in family.sources:
        if name.lower() in (full.lower(), full.split("-")[-1].lower()):
            return full
    raise ValueError(f"no model {name!r} in the paper's {family.title}; there are {', '.join(family.sources)}")


def _table(family: Family, profile: Profile, number: int) -> Iterator[Row]:
    printed = [line for line in paper_table(number) if line["model"] in family.sources]
    if not profile.is_papers:  # the levels of one model
        printed = [line for line in printed if line["model"] == printed[0]["model"]]
        printed = [line for line in printed if line.get("gpu", "A100-40GB") == "A100-40GB"]
    dense = None  # the row that those behind it are compared with
    for line in printed:
        label, percent = _label(number, line), _percent(number, line)
        columns = {metric: "wikitext2_perplexity" if metric == "perplexity" else metric for metric in METRICS[number]}
        paper = {metric: line[column] for metric, column in columns.items() if line.get(column) is not None}
        if label.startswith("sparsegpt"):
            if profile.is_papers:
                yield Row(number, line["model"], percent, paper, label)
            continue
        if number in ZERO_SHOT:
            asked = (*profile.tasks, *(["average"] if set(TASKS) <= set(profile.tasks) else []))
            paper = {metric: value for metric, value in paper.items() if metric in asked}
        is_dense = number in COMPARED and percent == 0
        if is_dense:
            dense = line
        elif number in COMPARED:
            metric = COMPARED[number]
            paper[f"{metric}_ratio"] = line[metric] / dense[metric]
        model = line["model"] if profile.is_papers else profile.stand_in
        settings = tuple(_settings(family, profile, number, model, percent))
        yield Row(number, model, percent, *((paper, label) if profile.is_papers else ({}, "")), settings, is_dense)


def _label(number: int, line: dict) -> str:
    if number == 3:
        return f"{line['slicing_gpus']}, {line['rft_gpus']}"
    return "" if number in ZERO_SHOT else line.get("method") or line.get("gpu", "H100-80GB")


def _percent(number: int, line: dict) -> int:
    if number == 12:
        return int(line["method"].removeprefix("slicegpt_")) if line["method"].startswith("slicegpt_") else 0
    return int(line.get("slicing_percent", 30))  # table 3 is at 30%


def _settings(family: Family, profile: Profile, number: int, model: str, percent: int) -> Iterator[Setting]:
    text, recovered = ZERO_SHOT.get(number, ("alpaca", True) if number == 3 else ("wikitext2", False))
    samples = PERPLEXITY.get(number, 2048 if (model, text) == ("Phi-2", "alpaca") else 1024)  # as table 3 says
    of_slicing = {"samples": profile.samples[samples], "seqlen": profile.seqlen}
    if recovered:
        of_slicing |= {
            "recovery": profile.texts[text][0],
            "recovery_samples": profile.recovery_samples[text],
            "recovery_seqlen": profile.recovery_seqlen,
            "recovery_steps": profile.recovery_steps,
        }
    if number in COST:
        shape = profile.model or model.lower()
        base = Setting(model, shape, COST[number], percent or 25, profile.dtype, adapter=profile.adapter)
        rounds = profile.repeats if number == 12 else profile.rounds
        of_time = {"length": profile.length, "rounds": rounds}
        yield replace(base, **({"signal": profile.signals[0], **of_slicing} if number == 3 else of_time))
        return
    base = Setting(model, profile.model or family.sources[model], "perplexity", percent, profile.dtype)
    if number in PERPLEXITY:
        signals = profile.signals
        base = replace(base, evaluation=profile.texts["wikitext2"][1], windows=profile.windows, seqlen=profile.seqlen)
    else:
        signals, tasks = profile.signals[:1], {"tasks": profile.tasks, "tasks_from": profile.tasks_from}
        base = replace(base, measure="zero-shot", **tasks, limit=profile.limit)
    if percent == 0:
        yield base
        return
    base = replace(base, adapter=profile.adapter, calibration=profile.texts[text][0], **of_slicing)
    for signal in signals:
        for seed in range(1 if model in ONE_SEED else profile.seeds):
            yield replace(base, signal=signal, seed=seed)


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
