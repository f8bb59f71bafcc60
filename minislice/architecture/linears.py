"""A linear that reads or writes the signal: every kind is given the attributes of an `nn.Linear`.

An `nn.Linear` needs nothing. Other modules are seen through a `StoredLinear`: transformers' `Conv1D` stores its matrix
transposed; a mixture stores the matrices of all experts in one parameter of three dimensions; a router has a matrix,
but no attributes for its sizes.
"""

from torch import Tensor, cat, nn
from transformers.pytorch_utils import Conv1D


class StoredLinear:
    """A module with the attributes of an `nn.Linear`; setting one changes the module."""

    weight: Tensor  # [out, in]
    in_features = property(lambda self: self.weight.shape[1])
    out_features = property(lambda self: self.weight.shape[0])

    def __init__(self, module: nn.Module):
        self.module = module

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, "bias", None)

    @bias.setter
    def bias(self, bias: nn.Parameter | None) -> None:
        self.module.bias = bias

    def store(self, name: str, tensor: Tensor) -> None:
        """Give the module another parameter in place of one that it has."""
        old = getattr(self.module, name)
        setattr(self.module, name, nn.Parameter(tensor.contiguous(), requires_grad=old.requires_grad))


class TransposedLinear(StoredLinear):
    """A `Conv1D`."""

    @property
    def weight(self) -> Tensor:
        return self.module.weight.T

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        self.store("weight", weight.T)
        self.module.nx, self.module.nf = self.module.weight.shape
        if not self.module.nx:
            self.module.__class__ = EmptyConv1D


class EmptyConv1D(Conv1D):
    """A `Conv1D` that reads nothing, where an MLP has no neurons left; transformers' own can't compute that."""

    def forward(self, x: Tensor) -> Tensor:  # [..., 0] -> [..., nf]
        return x.new_zeros(*x.shape[:-1], self.nf) + self.bias


class Router(StoredLinear):
    """Chooses the experts of a token; it reads the signal too."""

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        self.store("weight", weight)
        self.module.hidden_dim = self.in_features


class Experts(StoredLinear):
    """One side of all experts; `side` names the parameter, [experts, out, in] or transposed."""

    side: str

    def matrices(self) -> Tensor:  # [experts, out, in]
        stored = getattr(self.module, self.side)
        return stored.mT if self.module.is_transposed else stored

    def store_matrices(self, matrices: Tensor) -> None:
        self.store(self.side, matrices.mT if self.module.is_transposed else matrices)

    @StoredLinear.bias.setter
    def bias(self, bias: Tensor | None) -> None:
        """Experts have no bias in common. `ExpertsWriter` counts their biases among its columns."""
        if bias is not None:
            raise ValueError("can't fold the shift of a norm into experts: their class has no place for it")


class ExpertsReader(Experts):
    """The matrices of all experts one below the other: [experts * hidden, in]."""

    side = "gate_up_proj"
    in_features = property(lambda self: self.matrices().shape[2])

    @property
    def weight(self) -> Tensor:
        return self.matrices().flatten(0, 1)

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        self.store_matrices(weight.view(self.module.num_experts, -1, weight.shape[1]))


class ExpertsWriter(Experts):
    """The matrices of all experts side by side: [out, experts * hidden].

    An expert's bias is one more column, read from a hidden unit that is always 1.
    """

    side = "down_proj"
    out_features = property(lambda self: self.matrices().shape[1])

    @property
    def weight(self) -> Tensor:
        matrices = self.matrices()
        if self.module.has_bias:
            matrices = cat([matrices, self.module.down_proj_bias[..., None]], dim=2)
        return matrices.transpose(0, 1).flatten(1)

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        matrices = weight.view(len(weight), self.module.num_experts, -1).transpose(0, 1)
        if self.module.has_bias:
            self.store("down_proj_bias", matrices[..., -1])
            matrices = matrices[..., :-1]
        self.store_matrices(matrices)


Linear = nn.Module | StoredLinear  # PEFT puts a module of another class around an `nn.Linear`


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds all experts of a mixture."""
    return isinstance(getattr(module, ExpertsWriter.side, None), nn.Parameter) and hasattr(module, "is_transposed")


def is_linear(module: nn.Module) -> bool:
    """Whether a module can read or write the signal."""
    return isinstance(module, (nn.Linear, Conv1D)) or is_experts(module) or _is_router(module)


def reader(module: nn.Module) -> Linear:
    """The linear with which a module reads the signal: itself, or a `StoredLinear`."""
    if is_experts(module):
        return ExpertsReader(module)
    return Router(module) if _is_router(module) else writer(module)


def writer(module: nn.Module) -> Linear:
    """The linear with which a module writes to the signal."""
    if is_experts(module):
        return ExpertsWriter(module)
    return TransposedLinear(module) if isinstance(module, Conv1D) else module


def check_linear(name: str, module: nn.Module, layer: nn.Module) -> None:
    """Raise a ValueError unless a module is a linear with floating-point weights, neither quantized nor PEFT's."""
    known = type(module) in (nn.Linear, Conv1D)
    of_the_model = is_linear(module) and type(module).__module__ == type(layer).__module__
    if not (known or of_the_model) or not next(module.parameters()).is_floating_point():
        raise ValueError(
            f"{name} is a {type(module).__module__}.{type(module).__name__}, not an nn.Linear of floating-point "
            "weights; load the model without quantization, and merge PEFT adapters into it first"
        )


def _is_router(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter) and hasattr(module, "top_k")


def set_weight(module: Linear | nn.Embedding, weight: Tensor) -> None:
    """Give a module a new matrix, of any shape, in its own dtype; a bias stays as it is."""
    old = module.weight
    module.weight = nn.Parameter(weight.to(old.dtype).contiguous(), requires_grad=old.requires_grad)
    if isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif not isinstance(module, StoredLinear):  # which has set its sizes itself
        module.out_features, module.in_features = weight.shape


def set_linear(linear: Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear a new matrix and a new bias, or none, in its own dtype."""
    set_weight(linear, weight)
    like = linear.weight
    linear.bias = bias if bias is None else nn.Parameter(bias.to(like.dtype).contiguous(), like.requires_grad)
