"""What a model costs: size and FLOPs are counted from its modules, the time of a step of generation is measured."""

import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architecture.blocks import LowRankAdapter
from ..architecture.heads import FittedHead, TiedHead
from ..architecture.linears import Router, is_experts, reader
from ..architecture.modeling import CACHE
from ..architecture.network import inference, network
from ..checks import require_int
from ..corpus.batches import position_limit


def parameters(model: nn.Module) -> int:
    """The number of parameters, embeddings, head and adapters included, a shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_in_bytes(model: nn.Module) -> int:
    """What the parameters take in memory in the dtypes that they have, a shared one counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def size_in_words(model: PreTrainedModel, dense: int) -> str:
    """What became of a model of `dense` parameters by slicing; where it isn't smaller, why."""
    now, net = parameters(model), network(model)
    if now < dense:
        return f"The sliced model has {now / dense:.1%} of the dense model's parameters."
    causes = []
    if adapters := sum(parameters(block.adapter) for block in net.blocks if block.adapter is not None):
        causes.append(f"residual adapters take {adapters:,}")
    if net.head_was_tied and isinstance(net.head, nn.Linear):
        # Fusion puts a norm of the embedding into its matrix; an embedding of another class can't subtract the mean.
        keeps_mean = not net.subtracts_mean or type(net.embeddings[0]) is nn.Embedding
        can_tie = net.family.embedding_norm is None and keeps_mean
        remedy = ' (head="tied", --head tied, keeps it shared)' if can_tie else ""
        causes.append(f"the head, which shared the embedding's matrix, has {parameters(net.head):,} of its own{remedy}")
    cause = " and ".join(causes) or "nothing was deleted"
    return f"The sliced model is not smaller: {now:,} parameters against {dense:,}, because {cause}."


def flops_per_token(model: PreTrainedModel, context: int = 0) -> int:
    """Floating-point operations of the matrix products that one token costs: 2 m n for an m x n matrix.

    For each of the `context` tokens that the new one attends to, attention's own two products, scores and values, are
    2 m each, m = heads x head size. Slicing doesn't change them.
    """
    total, blocks = 0, network(model).blocks
    per_token = {  # how many experts a token has; configs have several names for it
        block.experts: next(module.top_k for module in block.mlp.modules() if hasattr(module, "top_k"))
        for block in blocks
        if block.is_mixture
    }
    for module in model.modules():
        if is_experts(module):
            matrices = sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 3)
            total += 2 * matrices * per_token[module] // module.num_experts
        elif isinstance(module, (nn.Linear, Conv1D, TiedHead, FittedHead)) or isinstance(reader(module), Router):
            total += 2 * module.weight.numel()
        if isinstance(module, LowRankAdapter):
            total += 4 * module.A.numel()  # x A, and that times A^T
        if isinstance(module, FittedHead):
            total += 2 * module.H.numel()
    attention_widths = [block.w_out[0].in_features for block in blocks if block.attention is not None]
    return total + 4 * context * sum(attention_widths)  # w_out[0] reads what attention gives, heads x head size of it


def step_seconds(model: PreTrainedModel, *, batch_size: int = 1, length: int = 128) -> float:
    """Seconds that one step of generation takes, with the cache, averaged over `length` steps.

    The latency of table 2 is this with one sequence, the throughput of table 11 is `batch_size` over this, both with
    length 128 (section 4). The tokens are random, which costs the same time as a text.
    """
    require_int("batch_size", batch_size)
    require_positions(model, require_int("length", length))
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (batch_size, length), generator=torch.Generator().manual_seed(0)).to(device)

    def generate() -> None:
        cache = None
        for step in range(length):
            output = model(input_ids=ids[:, step : step + 1], use_cache=True, **{CACHE: cache})
            cache = output[CACHE]

    with inference(model):
        model(input_ids=ids[:, :1], use_cache=True)  # warm up
        return seconds_of(generate, device) / length


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long the device works."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    with torch.cuda.device(device):  # whose stream the events are put into
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1000


def length_limit(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence may have, or had in training where the model itself sets no limit."""
    return position_limit(model) or getattr(model.config, "max_position_embeddings", None)


def require_positions(model: PreTrainedModel, tokens: int) -> None:
    limit = length_limit(model)
    if limit is not None and tokens > limit:
        raise ValueError(f"asked for {tokens} tokens, but the model has {limit} positions; ask for at most {limit}")
