"""What a model is worth and what it costs: perplexity by the paper's protocol (section 4), and size, FLOPs, time.

Parameters, bytes and FLOPs are counted from the modules as they are; latency and throughput are measured by a clock.
"""

import math
import time

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .blocks import LowRankAdapter, TiedHead, inference
from .families import network
from .tokens import Tokens, token_batches


def perplexity(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> float:
    """The exponential of the mean negative log-likelihood over all predicted tokens.

    Each row of `tokens` is a window of its own: its first token is given, the others are predicted. A prediction from
    or of padding does not count.

    Args:
        tokens: ids, [sequences, tokens], or an iterable of such batches (see `tokens.Tokens`).
        attention_mask: as the tokens; 0 where padded.
        batch_size: sequences a forward pass.

    Raises:
        ValueError: tokens that don't fit the model, or nothing to predict.
    """
    batches = token_batches(model, tokens, attention_mask, batch_size)
    total, count = 0.0, 0
    with inference(model):
        for batch in tqdm(batches, desc="perplexity", disable=not progress, leave=False):
            mask = None if batch.mask is None else batch.mask.long()
            logits = model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
                batch.ids[:, 1:].flatten().to(logits.device),
                reduction="none",
            )
            if batch.mask is not None:
                losses = losses[(batch.mask[:, :-1] & batch.mask[:, 1:]).flatten().to(losses.device)]
            total, count = total + losses.double().sum().item(), count + losses.numel()
    if count == 0:
        raise ValueError("nothing to predict: every sequence has a single token, or is padding")
    return math.exp(min(total / count, 700.0)) if math.isfinite(total) else math.nan


def parameters(model: nn.Module) -> int:
    """The number of parameters, embeddings, head and adapters included, a shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_in_bytes(model: nn.Module) -> int:
    """What the parameters take in memory in the dtypes that they have, a shared one counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def flops_per_token(model: PreTrainedModel, context: int = 0) -> int:
    """Floating-point operations of the matrix products that one token costs, 2 for each multiply-add.

    A product with an m x n matrix is 2 m n. Left out, as usual: norms, activations, softmax, biases, and looking up
    embeddings.

    Args:
        context: how many tokens the new one attends to. Attention's own two products, scores and values, are 2 m each
            for each of them, m = heads x head size. Slicing doesn't change them.
    """
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            total += 2 * module.weight.numel()
        elif isinstance(module, LowRankAdapter):
            total += 4 * module.A.numel()  # x A, and that times A^T
        elif isinstance(module, TiedHead):
            total += 2 * (module.H.numel() + module.embedding.weight.numel())
    attention_widths = [block.w_in[0].out_features for block in network(model).blocks if block.attention is not None]
    return total + 4 * context * sum(attention_widths)  # w_in[0] is the queries' projection


def step_seconds(model: PreTrainedModel, *, batch_size: int = 1, length: int = 128, seed: int = 0) -> float:
    """Seconds that one step of generation takes, with the cache, averaged over `length` steps.

    Section 4's setting for tables 2 and 11 is length 128. The tokens are random, which costs the same time as a text.
    """
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (batch_size, length), generator=generator).to(device)
    cache = None
    with inference(model):
        model(input_ids=ids[:, :1], use_cache=True)  # warm up
        _wait(device)
        began = time.perf_counter()
        for step in range(length):
            cache = model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True).past_key_values
        _wait(device)
    return (time.perf_counter() - began) / length


def latency(model: PreTrainedModel, *, length: int = 128, repeats: int = 3) -> float:
    """Milliseconds a token when one sequence is generated (the setting of table 2): the fastest of `repeats` runs."""
    return 1000 * min(step_seconds(model, length=length) for _ in range(repeats))


def throughput(model: PreTrainedModel, *, batch_size: int, length: int = 128, repeats: int = 3) -> float:
    """Tokens a second when `batch_size` sequences are generated together (table 11): the fastest of `repeats` runs."""
    return batch_size / min(step_seconds(model, batch_size=batch_size, length=length) for _ in range(repeats))


def _wait(device: torch.device) -> None:
    """Until what was handed to a GPU is done; its calls return before that."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
