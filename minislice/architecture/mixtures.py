"""Mixtures of experts where a block reads one width and writes another.

A mixture of transformers returns a tensor of the shape of its input. So inside a mixture the signal keeps the trained
width: zeros are appended to the input and cut off again before a linear reads it; the output is treated in the same
way. The matrices have no zeros.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .linears import ExpertsWriter, is_experts, reader, writer

ANY_WIDTH = "minislice"  # what transformers calls `experts_of_any_width`


def allow_any_width(block: nn.Module, trained_width: int) -> None:
    """Let the mixture of a `blocks.Block` read and write as many columns as its linears have, in place.

    The model must use `experts_of_any_width`.
    """
    mixture, sides = block.mlp, (block.readers, block.writers)
    w_in, w_out = ([name.removeprefix("mlp.") for name in names if name.startswith("mlp.")] for names in sides)
    mixture.register_forward_pre_hook(partial(_fill_input, trained_width))
    for part, name in {name.split(".")[0]: name for name in w_in}.items():  # router, experts, a shared expert
        inside = name.removeprefix(part).removeprefix(".")
        mixture.get_submodule(part).register_forward_pre_hook(partial(_cut_input, inside))
    for part in {name.split(".")[0] for name in w_out}:
        mixture.get_submodule(part).register_forward_hook(partial(_fill_output, trained_width))
    mixture.register_forward_hook(partial(_cut_output, w_out[0]))


def _fill_input(width: int, module: nn.Module, arguments: tuple) -> tuple:
    return nn.functional.pad(arguments[0], (0, width - arguments[0].shape[-1])), *arguments[1:]


def _cut_input(linear: str, module: nn.Module, arguments: tuple) -> tuple:
    return arguments[0][..., : reader(module.get_submodule(linear)).in_features], *arguments[1:]


def _fill_output(width: int, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
    return nn.functional.pad(output, (0, width - output.shape[-1]))


def _cut_output(linear: str, module: nn.Module, arguments: tuple, output: Tensor | tuple[Tensor, Any]) -> Tensor:
    output = output[0] if isinstance(output, tuple) else output  # with the router's choice
    return output[..., : writer(module.get_submodule(linear)).out_features]


def experts_of_any_width(experts: nn.Module, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the outputs of each token's experts: [tokens, k] -> [tokens, k_next].

    `index` and `weights`, [tokens, experts a token], are the router's.
    """
    k, k_next, neurons = x.shape[-1], *ExpertsWriter(experts).matrices().shape[1:]
    aligned = neurons and not any(columns * x.element_size() % 16 for columns in (k, neurons))
    if k == k_next and x.dtype != torch.float64 and aligned:
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](experts, x, index, weights)  # the fastest; it has these limits
    y = x.new_zeros(len(x), k_next)
    for expert in index.unique().tolist():
        token, place = (index == expert).nonzero(as_tuple=True)
        h = neurons_of(experts, expert, x[token])
        out = _product(experts, "down_proj", expert, h) * weights[token, place, None]
        y.index_add_(0, token, out.to(y.dtype))
    return y


def neurons_of(experts: nn.Module, expert: int, x: Tensor) -> Tensor:
    """The activations of one expert's neurons: [tokens, k] -> [tokens, neurons]."""
    return experts._apply_gate(_product(experts, "gate_up_proj", expert, x))


def _product(experts: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
    matrix = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return nn.functional.linear(x, matrix.T if experts.is_transposed else matrix, bias)


def able_to_compute(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, whose experts now compute in its dtype; transformers' default for experts knows no float64."""
    configs = [module.config for module in model.modules() if is_experts(module)]
    if model.dtype == torch.float64 and any(config._experts_implementation != ANY_WIDTH for config in configs):
        model.set_experts_implementation("eager")
    return model


ALL_EXPERTS_FUNCTIONS.register(ANY_WIDTH, experts_of_any_width)
