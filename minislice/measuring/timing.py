"""What inference costs, dense beside sliced: time, memory and the largest batch, as ratios that one run has measured.

Both models take a turn in every round, so that what disturbs the machine disturbs both; a ratio is taken within its
round, and the median of the rounds counts. On a GPU short work is timed by CUDA events, memory is what torch's
allocator says; on Linux it is the process's resident set.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ..architecture.linears import Experts
from ..architecture.network import inference, network
from ..checks import require_int
from .cost import flops_per_token, parameters, require_positions, size_in_bytes, step_seconds

Name = TypeVar("Name")

LARGEST_BATCH = 4096  # where the search ends


@dataclass(frozen=True)
class Pair:
    """One quantity of two models; None where it couldn't be measured."""

    dense: float | None
    sliced: float | None
    ratio: float | None  # sliced over dense


def compare(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    *,
    prompt: int = 128,
    length: int = 128,
    rounds: int = 5,
    batch_size: int | None = None,
) -> dict[str, Pair]:
    """What two models on one device cost: size and FLOPs counted, time and memory measured.

    Args:
        prompt: tokens of the prefill, one pass that writes the cache and gives the last token's logits.
        length: tokens generated one by one, with the cache; section 4's setting for tables 2 and 11 is 128.
        batch_size: for the throughput (table 11). By default, on a GPU, the largest that fits, of each model alone; on
            a CPU, where nothing says what fits, 8.
    """
    for name, value in {"prompt": prompt, "length": length, "rounds": rounds}.items():
        require_int(name, value)
    if batch_size is not None:
        require_int("batch_size", batch_size)
    models, device = {"dense": dense, "sliced": sliced}, _device(dense)
    require_positions(dense, max(prompt, length))
    found = {
        "parameters": _pair(*map(parameters, models.values())),
        "weights, bytes": _pair(*map(size_in_bytes, models.values())),
        "FLOPs a token": _pair(*(flops_per_token(model, length) for model in models.values())),
    }
    found["prefill, ms"] = _in_ms({name: _prefill(model, prompt) for name, model in models.items()}, device, rounds)
    found["decoding, ms a token"] = _in_ms(
        {name: lambda model=model: step_seconds(model, length=length) for name, model in models.items()}, None, rounds
    )
    working = {}
    for name, model in models.items():
        with peak_memory(device) as peak:
            step_seconds(model, length=length)
        working[name] = peak.added
    found["working memory, bytes"] = _pair(**working)
    if device.type == "cuda" and batch_size is None:
        sizes, speeds = {}, {}
        for name, model in models.items():
            other = models["sliced" if name == "dense" else "dense"].to("cpu")
            torch.cuda.empty_cache()
            sizes[name] = largest_batch(lambda size, model=model: _fits(model, size, length))
            seconds = min(step_seconds(model, batch_size=sizes[name], length=length) for _ in range(rounds))
            speeds[name] = sizes[name] / seconds
            other.to(device)
    else:
        sizes = dict.fromkeys(models, batch_size or 8)
        clocks = {
            name: lambda model=model: step_seconds(model, batch_size=batch_size or 8, length=length)
            for name, model in models.items()
        }
        seconds = in_turns(clocks, None, rounds)
        speeds = {name: sizes[name] / statistics.median(seconds[name]) for name in models}
    found["batch"], found["tokens a second"] = _pair(**sizes), _pair(**speeds)
    return found


def seconds_of(work: Callable[[], object], device: torch.device | None) -> float:
    """How long it takes, by CUDA events on a GPU. Without a device, `work` measures itself and returns seconds."""
    if device is None:
        return work()
    if device.type == "cuda":
        with torch.cuda.device(device):  # whose stream the events are put into
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(
    works: Mapping[Name, Callable[[], object]], device: torch.device | None, rounds: int
) -> dict[Name, list[float]]:
    """The seconds of each, one after the other in every round; a first round warms up and doesn't count."""
    seconds = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, device))
    return {name: measured[1:] for name, measured in seconds.items()}


def median_ratio(own: list[float], reference: list[float]) -> float:
    """The median over rounds of own / reference."""
    return statistics.median(a / b for a, b in zip(own, reference, strict=True))


def largest_batch(fits: Callable[[int], bool], limit: int = LARGEST_BATCH) -> int:
    """The largest batch that fits, to an eighth of its size: doubled until one doesn't fit, then bisected.

    Raises:
        ValueError: not even one sequence fits.
    """
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    if low == 0:
        raise ValueError("not even one sequence fits into the device's memory")
    while high <= limit and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass
class Peak:
    """Bytes in use before some work and at most during it; None where the system doesn't say."""

    before: int | None = None
    most: int | None = None

    @property
    def added(self) -> int | None:
        return None if self.before is None or self.most is None else max(0, self.most - self.before)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The most memory used within the block: torch's allocator on a GPU, the process's resident set on Linux."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak.before = torch.cuda.memory_allocated(device)
        yield peak
        peak.most = torch.cuda.max_memory_allocated(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the highest resident set falls to the present one
        peak.before = _resident("VmRSS")
    except OSError:
        pass
    yield peak
    if peak.before is not None:
        peak.most = _resident("VmHWM")


def product_milliseconds(
    models: Mapping[str, PreTrainedModel], *, tokens: int = 2048, repeats: int = 1000
) -> dict[str, dict[str, float]]:
    """Table 12: the median time of every matrix product of the middle layer, by model and by the linear's name.

    "adapter" is what the layer's residual adapters take together; "total" is the sum without it, as in the paper.
    The experts of a mixture are left out.
    """
    works, device = {}, _device(next(iter(models.values())))
    for model_name, model in models.items():
        layers = network(model).layers
        for index, block in enumerate(layers[len(layers) // 2].blocks):
            for name, linear in block.linears.items():
                if isinstance(linear, Experts):
                    continue  # the router says how much they multiply
                works[model_name, name.rsplit(".", 1)[-1]] = _product(
                    getattr(linear, "module", linear), linear.in_features, linear.weight, tokens
                )
            if block.adapter is not None:
                weight = next(block.adapter.parameters())
                works[model_name, f"adapter {index}"] = _product(
                    block.adapter, block.w_in[0].in_features, weight, tokens
                )
    seconds = in_turns(works, device, repeats)
    found = {name: {} for name in models}
    for (model_name, name), measured in seconds.items():
        name = "adapter" if name.startswith("adapter ") else name
        found[model_name][name] = found[model_name].get(name, 0.0) + 1000 * statistics.median(measured)
    for products in found.values():
        products["total"] = sum(milliseconds for name, milliseconds in products.items() if name != "adapter")
    return found


def _product(module: torch.nn.Module, width: int, like: torch.Tensor, tokens: int) -> Callable[[], None]:
    x = torch.randn(tokens, width, device=like.device, dtype=like.dtype)

    def work() -> None:
        with torch.no_grad():
            module(x)

    return work


def _prefill(model: PreTrainedModel, tokens: int) -> Callable[[], None]:
    vocabulary = model.get_input_embeddings().num_embeddings
    prompt = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(_device(model))

    def work() -> None:
        with inference(model):
            model(input_ids=prompt, use_cache=True, logits_to_keep=1)

    return work


def _fits(model: PreTrainedModel, batch_size: int, length: int) -> bool:
    try:
        step_seconds(model, batch_size=batch_size, length=length)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _in_ms(works: Mapping[str, Callable], device: torch.device | None, rounds: int) -> Pair:
    seconds = in_turns(works, device, rounds)
    dense, sliced = (1000 * statistics.median(seconds[name]) for name in ("dense", "sliced"))
    return Pair(dense, sliced, median_ratio(seconds["sliced"], seconds["dense"]))


def _pair(dense: float | None, sliced: float | None) -> Pair:
    return Pair(dense, sliced, sliced / dense if dense and sliced is not None else None)


def _device(model: PreTrainedModel) -> torch.device:
    return model.get_input_embeddings().weight.device


def _resident(name: str) -> int:
    """Bytes, as the kernel has them: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
