"""What inference costs, dense beside sliced: time, memory and the largest batch.

Both models take a turn in every round, so that whatever disturbs the machine disturbs both. For prefill and decoding a
ratio is taken within its round, and the median of the rounds counts; a throughput is that of the median round or, with
the largest batch on a GPU, of the fastest, one model after the other. On a GPU, CUDA events are the clock, and memory
is what torch's allocator reports; on Linux, memory is the resident set of the process.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..architecture.linears import Experts
from ..architecture.network import inference, network
from ..checks import require_int
from .cost import flops_per_token, parameters, require_positions, seconds_of, size_in_bytes, step_seconds

LARGEST_BATCH = 4096  # where the search ends


class Pair(NamedTuple):
    """One quantity of two models; None where it couldn't be measured."""

    dense: float | None
    sliced: float | None
    ratio: float | None  # sliced over dense


def inference_cost(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    *,
    prompt: int = 128,
    length: int = 128,
    rounds: int = 5,
    batch_size: int | None = None,
) -> dict[str, Pair]:
    """What two models on one device cost: size and FLOPs are counted, time and memory are measured.

    Args:
        prompt: tokens of the prefill, one pass that writes the cache and gives the last token's logits.
        length: tokens generated one by one, with the cache; section 4's setting for tables 2 and 11 is 128.
        batch_size: for the throughput (table 11); by default, on a GPU, the largest that fits of each model alone, on a
            CPU 8.
    """
    together = 8 if batch_size is None else batch_size
    for name, value in {"prompt": prompt, "length": length, "rounds": rounds, "batch_size": together}.items():
        require_int(name, value)
    require_positions(dense, max(prompt, length))
    models, device = {"dense": dense, "sliced": sliced}, dense.device
    vocabulary = dense.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (1, prompt), generator=torch.Generator().manual_seed(0)).to(device)

    def prefill(model: PreTrainedModel) -> float:
        return seconds_of(partial(model, input_ids=ids, use_cache=True, logits_to_keep=1), device)

    with inference(dense), inference(sliced):
        prefills = in_turns(models, prefill, rounds)
    steps = in_turns(models, partial(step_seconds, length=length), rounds)
    memory = []
    for model in models.values():
        with peak_memory(device) as peak:
            step_seconds(model, length=length)
        memory.append(peak.added)
    if device.type == "cuda" and batch_size is None:
        pairs = ((dense, sliced), (sliced, dense))
        sizes, speeds = zip(*(_largest_throughput(*pair, length, rounds) for pair in pairs), strict=True)
    else:
        seconds = in_turns(models, partial(step_seconds, batch_size=together, length=length), rounds)
        sizes, speeds = (together, together), [together / statistics.median(times) for times in seconds.values()]
    return {
        "parameters": pair_of(*map(parameters, models.values())),
        "weights, bytes": pair_of(*map(size_in_bytes, models.values())),
        "FLOPs a token": pair_of(*(flops_per_token(model, length) for model in models.values())),
        "prefill, ms": _milliseconds(**prefills),
        "decoding, ms a token": _milliseconds(**steps),
        "working memory, bytes": pair_of(*memory),
        "batch": pair_of(*sizes),
        "tokens a second": pair_of(*speeds),
    }


def pair_of(dense: float | None, sliced: float | None) -> Pair:
    return Pair(dense, sliced, sliced / dense if dense and sliced is not None else None)


def in_turns(works: Mapping[Any, Any], clock: Callable[[Any], float], rounds: int) -> dict[Any, list[float]]:
    """The seconds of each work by the clock, one after the other in every round; a first round warms up, uncounted."""
    measured = [{name: clock(work) for name, work in works.items()} for _ in range(rounds + 1)]
    return {name: [seconds[name] for seconds in measured[1:]] for name in works}


def _milliseconds(dense: list[float], sliced: list[float]) -> Pair:
    medians = (1000 * statistics.median(seconds) for seconds in (dense, sliced))
    return Pair(*medians, statistics.median(b / a for a, b in zip(dense, sliced, strict=True)))


def _largest_throughput(model: PreTrainedModel, other: PreTrainedModel, length: int, rounds: int) -> tuple[int, float]:
    """The largest batch that fits on the GPU while the other model is elsewhere, and its tokens a second."""

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        try:
            step_seconds(model, batch_size=size, length=length)
        except torch.OutOfMemoryError:
            return False
        return True

    device = other.device
    other.to("cpu")
    try:
        size = largest_batch(fits)
        torch.cuda.empty_cache()
        return size, size / min(step_seconds(model, batch_size=size, length=length) for _ in range(rounds))
    finally:
        other.to(device)


def largest_batch(fits: Callable[[int], bool]) -> int:
    """The largest batch that fits, to an eighth of its size: doubled until one doesn't fit, then bisected."""
    low, high = 0, 1
    while high <= LARGEST_BATCH and fits(high):
        low, high = high, 2 * high
    if low == 0:
        raise ValueError("not even one sequence fits into the device's memory")
    while high <= LARGEST_BATCH and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass
class Peak:
    """Bytes in use before some work, and at most during it; None where the system doesn't say."""

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
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the highest resident set falls to the present one
        peak.before = _resident("VmRSS")
    yield peak
    if peak.before is not None:
        peak.most = _resident("VmHWM")


def _resident(name: str) -> int:
    """Bytes, as the kernel has them: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


@torch.no_grad()
def product_milliseconds(
    models: Mapping[str, PreTrainedModel], *, tokens: int = 2048, repeats: int = 1000
) -> dict[str, dict[str, float]]:
    """Table 12: the median time of every matrix product of the middle layer, by model and by the linear's name.

    The name is the last part of the linear's, "c_fc"; in full, "mlp.c_proj", where another linear's name, in any of the
    models, ends alike. "adapter" is the sum of the layer's residual adapters; "total" is the sum of all others but a
    mixture's experts.
    """
    works, middle = {}, []
    for model in models.values():
        layers = network(model).layers
        middle.append(layers[len(layers) // 2].blocks)
    full_names = {name for blocks in middle for block in blocks for name in block.linears}
    short_names = [name.rpartition(".")[2] for name in full_names]
    for (model_name, model), blocks in zip(models.items(), middle, strict=True):
        for index, block in enumerate(blocks):
            products = {} if block.adapter is None else {"adapter": (block.adapter, block.w_in[0].in_features)}
            for name, linear in block.linears.items():
                short_name = name.rpartition(".")[2]
                if not isinstance(linear, Experts):
                    unique_name = short_name if short_names.count(short_name) == 1 else name
                    products[unique_name] = getattr(linear, "module", linear), linear.in_features
            for name, (module, width) in products.items():
                x = torch.randn(tokens, width, device=model.device, dtype=model.dtype)
                works[model_name, name, index] = partial(module, x), model.device
    times = {name: {} for name in models}
    for (model_name, name, _), seconds in in_turns(works, lambda work: seconds_of(*work), repeats).items():
        times[model_name][name] = times[model_name].get(name, 0.0) + 1000 * statistics.median(seconds)
    for products in times.values():
        products["total"] = sum(milliseconds for name, milliseconds in products.items() if name != "adapter")
    return times
