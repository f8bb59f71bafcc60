"""A linear that reads or writes the signal, whatever it is stored as: what has the attributes of an `nn.Linear`.

`nn.Linear` and its subclasses are taken as they are. GPT-2's `Conv1D` stores the transposed matrix, and is seen through
a `StoredLinear`. A saved model takes this file with it, as it does `blocks`.
"""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def _called(name: str) -> property:
    return property(lambda self: getattr(self.module, name), lambda self, value: setattr(self.module, name, value))


class StoredLinear:
    """A `Conv1D` with the attributes of an `nn.Linear`; setting one changes the module."""

    bias, in_features, out_features = _called("bias"), _called("nx"), _called("nf")

    def __init__(self, module: Conv1D):
        self.module = module

    @property
    def weight(self) -> Tensor:  # [out, in]
        return self.module.weight.T

    @weight.setter
    def weight(self, weight: nn.Parameter) -> None:
        self.module.weight = nn.Parameter(weight.T.contiguous(), requires_grad=weight.requires_grad)


Linear = nn.Module | StoredLinear  # a module, for PEFT wraps an `nn.Linear` in one of its own


def as_linear(module: nn.Module) -> Linear:
    """The module itself, or what shows it as an `nn.Linear`."""
    return StoredLinear(module) if isinstance(module, Conv1D) else module


def check_linear(name: str, module: nn.Module, layer: nn.Module) -> None:
    """Raise a ValueError for what isn't a linear of floating-point weights, as quantization and PEFT leave it."""
    known = type(module) in (nn.Linear, Conv1D)
    of_the_model = isinstance(module, nn.Linear) and type(module).__module__ == type(layer).__module__
    if not (known or of_the_model) or not module.weight.is_floating_point():
        raise ValueError(
            f"{name} is a {type(module).__module__}.{type(module).__name__}, not an nn.Linear of floating-point "
            "weights; load the model without quantization, and merge PEFT adapters into it first"
        )
