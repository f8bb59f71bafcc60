"""Before a long run: what each model needs, what this machine has, and why a row can't run here."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from bench import Bench
from protocol import Row, Setting, settings_of
from provenance import hash_of, revision_of
from transformers import AutoModelForCausalLM

from minislice.measuring.cost import parameters
from minislice.measuring.shapes import SHAPES
from minislice.storage.checkpoint import load_tokenizer, locate

# Besides the dense weights: a head of its own, full adapters, one layer's products in float64, a batch's activations.
MARGIN = 1.3
SIGNALS = 2  # at the width that was reached, and at full width


@dataclass(frozen=True)
class Machine:
    """Bytes that there are."""

    device: str
    device_memory: int  # of the device that computes; the host's for a CPU
    all_devices: int  # of every GPU together
    host_memory: int
    disk: int

    @classmethod
    def here(cls, device: str, folder: Path) -> "Machine":
        """Those of the machine that this runs on; `folder` is where the results go."""
        host, disk = _host_memory(), shutil.disk_usage(folder).free
        if torch.device(device).type != "cuda":
            return cls(device, host, host, host, disk)
        cards = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        return cls(device, cards[torch.device(device).index or 0], sum(cards), host, disk)


def why_not(setting: Setting, machine: Machine, stream: bool) -> str | None:
    """The reason why a setting can't run here; None where it can, as far as can be told before."""
    if setting.source.lower() not in SHAPES and setting.model.lower() not in SHAPES:
        return None  # a stand-in, which was chosen to fit
    weights, signal = needs(setting)
    if setting.measure == "products":
        return None
    if setting.measure == "inference":
        return _too_much(2 * weights, machine.device_memory, "the dense and the sliced model on one device")
    if stream and setting.percent and setting.measure != "time":
        on_disk = _too_much(weights + 3 * signal, machine.disk, "the sliced model and the signal on the disk")
        return on_disk or _too_much(weights, machine.all_devices, "the sliced model, to measure it, on all devices")
    room = machine.all_devices if stream else machine.device_memory
    where = "the dense model on all devices" if stream else "slicing in memory"
    if setting.measure != "time" and not stream:
        where += " (--stream needs one layer at a time)"
    needed = weights * (MARGIN if setting.percent else 1.0)
    return _too_much(needed, room, where) or _too_much(
        SIGNALS * signal, machine.host_memory, "the signal in host memory"
    )


def needs(setting: Setting) -> tuple[int, int]:
    """Bytes of a model's weights and of the calibration set's signal, in the setting's dtype."""
    config = SHAPES.get(setting.source.lower()) or SHAPES[setting.model.lower()]
    item = getattr(torch, setting.dtype).itemsize
    tokens = (setting.samples or 0) * (setting.seqlen or 0) if setting.percent else 0
    return _parameters(setting.model.lower()) * item, tokens * config.hidden_size * item


def overview(rows: list[Row], machine: Machine, dtype: str, stream: bool) -> list[dict]:
    """One line for each model: what it needs, and how many of its settings can run here."""
    lines = []
    settings = settings_of(rows, dtype)
    for model in dict.fromkeys(setting.model for setting in settings):
        own = [setting for setting in settings if setting.model == model]
        reasons = [reason for setting in own if (reason := why_not(setting, machine, stream))]
        known = [needs(setting) for setting in own if setting.model.lower() in SHAPES]
        weights, signal = (max(values) / 1e9 for values in zip(*known, strict=True)) if known else (None, None)
        lines.append(
            {
                "model": model,
                "weights, GB": "small" if weights is None else f"{weights:.1f}",
                "signal, GB": "small" if signal is None else f"{signal:.1f}",
                "can run": f"{len(own) - len(reasons)} of {len(own)}",
                "fetched": _access(own),
                "why not": reasons[0] if reasons else "",
            }
        )
    return lines


def token_sets(setting: Setting) -> list[dict]:
    """The tokens that calibrate and those that are measured on, of a sliced model's perplexity: how many, which.

    Raises:
        ValueError: a window is in both.
    """
    bench = Bench("cpu")
    tokenizer = load_tokenizer(locate(setting.source))
    cut = {
        "calibration": bench.calibration(setting, tokenizer),
        "evaluation": bench.evaluation(setting, tokenizer),
    }
    if shared := len(set(map(tuple, cut["calibration"].tolist())) & set(map(tuple, cut["evaluation"].tolist()))):
        raise ValueError(f"{shared} windows of {setting.evaluation} are both calibrated and measured on")
    return [
        {
            "tokens": name,
            "text": Path(getattr(setting, name)).name,
            "windows": len(tokens),
            "tokens of each": tokens.shape[1],
            "sha256": hash_of(tokens),
        }
        for name, tokens in cut.items()
    ]


def _access(settings: list[Setting]) -> str:
    """Whether the weights can be had: the revision, or what the hub says."""
    try:
        return next((revision_of(setting)[:12] for setting in settings if setting.measure in _OF_WEIGHTS), "not needed")
    except ValueError as error:
        return f"no: {' '.join(str(error).split())[:80]}"


_OF_WEIGHTS = ("perplexity", "zero-shot")


@functools.cache
def _parameters(shape: str) -> int:
    with torch.device("meta"):
        return parameters(AutoModelForCausalLM.from_config(SHAPES[shape]))


def _too_much(needed: float, there: int, what: str) -> str | None:
    if needed <= there:
        return None
    return f"{what} takes about {needed / 1e9:.0f} GB, and there are {there / 1e9:.0f}"


def _host_memory() -> int:
    """What is available on Linux, and nothing to fear from elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return 1 << 62
