"""What flows where in a model: every call of a module, and how one tensor is made of others."""

import copy
import inspect
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.family import NormKind
from ..architecture.linears import is_linear
from ..architecture.network import inference

SAME = 1e-9  # of two tensors that should be equal, relative; both come from the same run


@dataclass(eq=False)
class Call:
    """One call of a module."""

    name: str
    module: nn.Module
    arguments: dict[str, Any]
    output: Tensor
    returned_tuple: bool

    @property
    def input(self) -> Tensor | None:
        return next((value for value in self.arguments.values() if isinstance(value, Tensor)), None)


def redrawn(model: PreTrainedModel, generator: torch.Generator) -> PreTrainedModel:
    """A copy in float64 in which no scale is 1, no shift is 0 and no two tokens have the same embedding."""
    model = copy.deepcopy(model).double().eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
        matrix = parameter.ndim > 1
        parameter.data = noise / parameter.shape[-1] ** 0.5 if matrix else 1 + 0.5 * torch.tanh(noise)
    return model


@torch.no_grad()
def calls_of(model: PreTrainedModel, ids: Tensor) -> list[Call]:
    """Every call of a module inside the model, in the order in which they end."""
    calls, names = [], {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, positional: tuple, named: dict, output: Any) -> None:
        parameters = list(inspect.signature(module.forward).parameters)
        arguments = {**dict(zip(parameters, positional, strict=False)), **named}
        returned_tuple = isinstance(output, (tuple, list))
        output = output[0] if returned_tuple else output
        if isinstance(output, Tensor) and arguments:
            tensors = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
            calls.append(Call(names[module], module, arguments | tensors, output.clone(), returned_tuple))

    with ExitStack() as hooks, inference(model):
        for module in names:
            hooks.enter_context(module.register_forward_hook(note, with_kwargs=True))
        model(input_ids=ids, use_cache=False)
    return calls


def equal(a: Tensor | None, b: Tensor) -> bool:
    """Whether two tensors are the same but for rounding and for how sequences and tokens are arranged."""
    if a is None or a.numel() != b.numel() or not a.is_floating_point() or a.shape[-1] != b.shape[-1]:
        return False
    return bool((a.reshape(b.shape) - b).abs().max() <= SAME * b.abs().max())


def explain(target: Tensor, calls: list[Call], by_token: bool = False) -> dict[Call, Tensor] | None:
    """The calls whose outputs sum up to the target, each with its weight; None if no such sum is the target.

    `by_token` every token has its own weights, [tokens], as a gate gives them.
    """
    size = target.shape[-1] if by_token else target.numel()
    if not 0 < len(calls) < size:
        return None
    outputs = [
        call.output if call.output.numel() == target.numel() else call.output.expand_as(target) for call in calls
    ]
    A, target = torch.stack([output.reshape(-1, size) for output in outputs], dim=2), target.reshape(-1, size, 1)
    weights = torch.linalg.lstsq(A, target).solution
    if (A @ weights - target).abs().max() > SAME * target.abs().max():
        return None
    pairs = zip(calls, weights[..., 0].T, strict=True)
    return {call: weight for call, weight in pairs if weight.abs().max() > SAME}


@torch.no_grad()
def norm_kind(module: nn.Module, width: int) -> NormKind | None:
    """What kind of norm of this width a module is; None for anything else."""
    sizes = {tuple(tensor.shape) for tensor in (*module.parameters(), *module.buffers())}
    if next(module.children(), None) is not None or sizes - {(width,)} or is_linear(module):
        return None
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    x = x.to(next((p.device for p in module.parameters()), "cpu"))
    try:
        large, small = module(1e3 * x), module(1e-3 * x)
    except (RuntimeError, TypeError, ValueError):
        return None
    if not isinstance(large, Tensor) or large.shape != x.shape:
        return None
    eps = next((name for name, value in vars(module).items() if "eps" in name and isinstance(value, float)), None)
    bias = getattr(module, "bias", None)
    shift = 0.0 if bias is None else bias
    for kind in (NormKind(subtracts_mean, eps, offset) for subtracts_mean in (False, True) for offset in (0.0, 1.0)):
        centred, scale = x - x.mean(-1, keepdim=True) if kind.subtracts_mean else x, kind.scale_of(module)
        mean_square = centred.square().mean(-1, keepdim=True)
        scaled = centred * mean_square.rsqrt() * (1.0 if scale is None else scale)
        if (large - shift - scaled).abs().max() < 1e-4:
            if eps is None:  # measured, where the root mean square is small: y = x / sqrt(mean square + eps)
                share = ((small - shift) / scaled).square()[0, 0].item()
                kind = replace(kind, eps=float(f"{1e-6 * mean_square[0].item() * (1 / share - 1):.3g}"))
            return kind
    return None
