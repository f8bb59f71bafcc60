"""Before a long run: what each model needs, what this machine has, and why a row can't run here."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from protocol import OF_SHAPES, Row, Setting, settings_of
from results import revision_of
from transformers import AutoModelForCausalLM

from minislice.measuring.cost import parameters
from minislice.measuring.shapes import SHAPES

# Besides the dense weights: a head of its own, full adapters, one layer's products in float64, a batch's activations.
MARGIN = 1.3


@dataclass(frozen=True)
class Machine:
    device_memory: int  # of the device that computes; the host's for a CPU
    all_devices: int  # of every GPU together
    host_memory: int
    disk: int

    @classmethod
    def here(cls, device: str, folder: Path) -> "Machine":
        host, disk = psutil.virtual_memory().available, shutil.disk_usage(folder).free
        if torch.device(device).type != "cuda":
            return cls(host, host, host, disk)
        cards = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        return cls(cards[torch.device(device).index or 0], sum(cards), host, disk)


def why_not(setting: Setting, machine: Machine, stream: bool) -> str | None:
    """The reason why a setting can't run here; None where it can, as far as can be told before."""
    weights, signal = needs(setting)
    if setting.measure == "products":  # of three layers alone
        return None
    if setting.measure == "inference":
        wanted = [(2 * weights, machine.device_memory, "the dense and the sliced model on one device")]
    elif stream and setting.percent and setting.measure != "time":
        wanted = [
            (weights + 3 * signal, machine.disk, "the sliced model and the signal on the disk"),
            (weights, machine.all_devices, "the sliced model, to measure it, on all devices"),
        ]
    else:
        room = machine.all_devices if stream else machine.device_memory
        where = "the model on all devices" if stream else "slicing in memory (--stream needs one layer at a time)"
        wanted = [
            (weights * (MARGIN if setting.percent else 1.0), room, where),
            (2 * signal, machine.host_memory, "the signal in host memory"),  # sliced, and of full width
        ]
    reasons = (f"{what} takes about {n / 1e9:.0f} GB, and there are {m / 1e9:.0f}" for n, m, what in wanted if n > m)
    return next(reasons, None)


def needs(setting: Setting) -> tuple[int, int]:
    """Bytes of a model's weights and of its calibration set's signal; zeros for a stand-in, which was chosen to fit."""
    shape = next((name for name in (setting.source.lower(), setting.model.lower()) if name in SHAPES), None)
    if shape is None:
        return 0, 0
    item = getattr(torch, setting.how.dtype).itemsize
    tokens = setting.how.samples * setting.how.seqlen if setting.signal else 0
    return _parameters(shape) * item, tokens * SHAPES[shape].hidden_size * item


def overview(rows: list[Row], machine: Machine, stream: bool) -> list[dict]:
    """One line for each model: what it needs, and how many of its settings can run here."""
    lines = []
    settings = settings_of(rows)
    for model in dict.fromkeys(setting.model for setting in settings):
        own = [setting for setting in settings if setting.model == model]
        reasons = [reason for setting in own if (reason := why_not(setting, machine, stream))]
        sizes = (max(size) / 1e9 for size in zip(*map(needs, own), strict=True))
        weights, signal = (f"{size:.1f}" if size else "small" for size in sizes)
        line = {"model": model, "weights, GB": weights, "signal, GB": signal}
        line |= {"can run": f"{len(own) - len(reasons)} of {len(own)}", "fetched": _access(own)}
        lines.append(line | {"why not": reasons[0] if reasons else ""})
    return lines


def _access(settings: list[Setting]) -> str:
    """Whether the weights can be had: the revision, or what the hub says."""
    with_weights = [setting for setting in settings if setting.measure not in OF_SHAPES]
    try:
        return revision_of(with_weights[0])[:12] if with_weights else "not needed"
    except ValueError as error:
        return f"no: {' '.join(str(error).split())[:80]}"


@functools.cache
def _parameters(shape: str) -> int:
    with torch.device("meta"):
        return parameters(AutoModelForCausalLM.from_config(SHAPES[shape]))
