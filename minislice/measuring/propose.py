"""Which entry of the table would describe a model? Found from what tensors flow where.

A copy of the model, with every parameter redrawn, runs on a few random tokens in float64, and every module's input and
output is kept. Then, in the order of the calls:

- a norm computes what `NormKind` says
- a linear reads the signal if its input is the output of a norm that reads the signal
- what is added to the signal between two norms is a sum of outputs, found by least squares: of linears that write to
  the signal, or of something that does not commute with a rotation

What can't be explained is an obstacle. `verify` decides in float64 whether the entry is right.
"""

import dataclasses
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.families import FAMILIES
from ..architecture.family import BlockSpec, Family, NormKind
from ..architecture.linears import is_linear
from ..checks import require_seed
from ..invariance import Verification, verify
from .flow import Call, calls_of, equal, explain, norm_kind, redrawn

NORM_AFTER = (
    "a norm with a scale stands after the branch ({}): what it adds to the signal is RMSNorm(f W_out) diag(w), and "
    "diag(w) does not commute with a rotation"
)
CARRIED = (
    "the residual connection carries the scaled output of {}, not the signal, and a scale does not commute with a "
    "rotation"
)


class Obstacle(Exception):
    """Why no entry describes the model; the message says where."""


@dataclass
class Proposal:
    """An entry and what verifying it gave, or an obstacle."""

    model_type: str
    family: Family | None = None
    obstacle: str | None = None
    verification: Verification | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        return self.verification is not None and self.verification.passed

    def __str__(self) -> str:
        if self.family is None:
            return f"No entry describes {self.model_type!r}: {self.obstacle}."
        return f"{entry(self.model_type, self.family)}\n\n{self.verification}"


def entry(model_type: str, family: Family) -> str:
    """The lines of Python that register a family."""
    return f"minislice.families.register({model_type!r}, {_source(family)})"


def _source(value: Any, indent: str = "    ") -> str:
    if isinstance(value, tuple):
        parts = [_source(part, indent) for part in value]
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = [
        f"{indent}{f.name}={_source(getattr(value, f.name), indent + '    ')},\n"
        for f in dataclasses.fields(value)
        if f.name != "obstacle" and getattr(value, f.name) != f.default
    ]
    return f"{type(value).__name__}(\n{''.join(fields)}{indent[4:]})"


def propose(model: PreTrainedModel, *, seed: int = 0) -> Proposal:
    """Look for the entry that describes a causal language model, and verify it. Neither model nor table changes.

    Args:
        model: any of transformers' design, with layers in an `nn.ModuleList`; its weights don't matter.
        seed: of the tokens and of the redrawn parameters.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a transformers causal language model, got {type(model).__name__}")
    generator = torch.Generator().manual_seed(require_seed(seed))
    model_type = model.config.model_type
    ids = torch.randint(model.get_input_embeddings().num_embeddings, (2, 24), generator=generator)
    ids = ids.to(model.get_input_embeddings().weight.device)
    model = redrawn(model, generator)
    known = dict(FAMILIES)
    try:
        FAMILIES[model_type] = family = _Observed(model, ids).family()
        return Proposal(model_type, family, verification=verify(model, ids, dtypes=["float64"]))
    except Obstacle as obstacle:
        return Proposal(model_type, obstacle=str(obstacle))
    except Exception as error:  # of any kind, for the model may be of any class
        return Proposal(model_type, obstacle=f"running it ends in an error, {type(error).__name__}: {error}")
    finally:
        FAMILIES.clear()
        FAMILIES.update(known)


class _Observed:
    """A model's calls on some tokens."""

    def __init__(self, model: PreTrainedModel, ids: Tensor):
        self.model, self.calls = model, calls_of(model, ids)
        self.call_of = {call.module: call for call in self.calls}
        self.layers = self._layers()
        place = self.call_of[self.layers[0]].name.rpartition(".")[0]
        self.decoder, _, self.layers_name = place.rpartition(".")
        self.kind: NormKind | None = None
        self.scale = 1.0

    def family(self) -> Family:
        """The entry, or an Obstacle."""
        embeddings, embedding_norm = self._embeddings()
        blocks = [self._blocks(layer) for layer in self.layers]
        if different := [index for index, others in enumerate(blocks) if others != blocks[0]]:
            raise Obstacle(
                f"layer {different[0]} is made of other blocks than layer 0, and what decides that can't be seen: "
                "`blocks` has to be a function of the config and the layer's index"
            )
        final_norm, head = self._end()
        if final_norm == embedding_norm:
            raise Obstacle(f"{final_norm} stands after the embeddings and before the head, where each needs its own")
        decoder, layer = self.model.get_submodule(self.decoder), self.layers[0]
        source = inspect.getsource(type(decoder).forward)
        shaped = getattr(decoder, "drop", None) in self.call_of and ".view(output_shape)" in source
        returned_tuple = self.call_of[layer].returned_tuple
        is_usual = returned_tuple == ("output_attentions" in inspect.signature(layer.forward).parameters)
        return Family(
            decoder=self.decoder,
            embeddings=embeddings,
            final_norm=final_norm,
            blocks=blocks[0],
            norm=self.kind,
            stock_norm="its class wasn't looked at for this",
            layers=self.layers_name,
            embedding_norm=embedding_norm,
            last_shaped_as="drop" if shaped else None,
            branch_scale=self._config_name_of(self.scale) if self.scale != 1 else None,
            head=head,
            returns_tuple=None if is_usual else returned_tuple,
        )

    def _layers(self) -> nn.ModuleList:
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        called = [m for m in lists if len(m) and all(layer in self.call_of for layer in m)]
        if not called:
            raise Obstacle("it has no nn.ModuleList of layers that are called one after the other")
        return max(called, key=lambda m: sum(parameter.numel() for parameter in m.parameters()))

    def _embeddings(self) -> tuple[tuple[str, ...], str | None]:
        """The tables whose sum the first layer reads, and a norm of that sum."""
        start = self.call_of[self.layers[0]].input
        tables = [call for call in self.calls if isinstance(call.module, nn.Embedding)]
        fitting = [call for call in tables if call.output.shape in (start.shape, start[:1].shape, start.shape[1:])]
        used, norm = explain(start, fitting), None
        before = [call for call in self.calls if equal(call.output, start)]
        if not used and before and norm_kind(before[0].module, start.shape[-1]):
            used, norm = explain(before[0].input, fitting), self._short(before[0])
        if not used:
            raise Obstacle(
                "what the first layer reads is not a sum of embeddings "
                f"({', '.join(call.name for call in tables)}), nor a norm of one"
            )
        tokens = self.model.get_input_embeddings()  # their table comes first
        return tuple(map(self._short, sorted(used, key=lambda call: call.module is not tokens))), norm

    def _blocks(self, layer: nn.Module) -> tuple[BlockSpec, ...]:
        whole = self.call_of[layer]
        inside = [call for call in self.calls if call.name.startswith(f"{whole.name}.")]
        width = whole.input.shape[-1]
        signal, blocks, norms, added = whole.input, [], [], []
        for call in inside:
            if is_linear(call.module) and equal(call.input, signal):
                raise Obstacle(f"{self._short(call)} reads the signal, and no norm stands before it")
            if kind := norm_kind(call.module, width):
                reads_signal = equal(call.input, signal)
                writers = None if reads_signal else self._writers(signal, call.input, added, optional=True)
                if writers:  # a new boundary
                    blocks.append((norms, writers))
                    signal, norms, added = call.input, [], []
                if reads_signal or writers:
                    if self.kind not in (None, kind):
                        raise Obstacle(f"{self._short(call)} is another kind of norm than the others: {kind}")
                    self.kind = kind
                    norms.append(call)
            added.append(call)
        blocks.append((norms, self._writers(signal, whole.output, added)))
        return tuple(self._spec(whole, inside, norms, writers) for norms, writers in blocks)

    def _writers(self, before: Tensor, after: Tensor, calls: list[Call], optional: bool = False) -> list[Call] | None:
        """The linears whose outputs, times one number, are what was added to the signal."""
        if after.numel() != before.numel():
            return None
        after = after.reshape(before.shape)  # some flatten sequences and tokens for the MLP
        linears = [c for c in calls if is_linear(c.module) and c.output.numel() == after.numel()]
        if used := explain(after - before, linears):
            numbers = {round(weight.item(), 9) for weight in used.values()}
            if len(numbers) != 1 or self.scale not in (1.0, *numbers):
                raise Obstacle(
                    f"what is added to the signal is multiplied by different numbers: {self.scale}, {numbers}"
                )
            self.scale = numbers.pop()
            return [*used]
        norms = [c for c in calls if norm_kind(c.module, before.shape[-1])]
        is_normed = any(equal(norm.input, linear.output) for norm in norms for linear in linears)
        if not is_normed and (used := explain(after - before, linears, by_token=True)):
            return [*used]  # times what a gate gives, as a shared expert's
        if optional:
            return None
        norms = [norm for norm in norms if norm.output.numel() == after.numel()]
        for target, reason in ((after - before, NORM_AFTER), (after, CARRIED)):
            if used := explain(target, [*norms, *linears]):
                raise Obstacle(reason.format(", ".join(self._short(call) for call in used if call in norms)))
        raise Obstacle("what is added to the signal is not a sum of linears' outputs")

    def _spec(self, layer: Call, inside: list[Call], norms: list[Call], writers: list[Call]) -> BlockSpec:
        def short(call: Call) -> str:
            return call.name.removeprefix(f"{layer.name}.")

        def child(call: Call) -> str:
            return short(call).split(".")[0]

        readers = {n.name: [c for c in inside if is_linear(c.module) and equal(c.input, n.output)] for n in norms}
        members = [*(reader for norm in norms for reader in readers[norm.name]), *writers]
        if not norms or not members:
            raise Obstacle(f"a branch of {layer.name} has no norm that reads the signal")
        parts = {child(call): self.call_of.get(layer.module.get_submodule(child(call))) for call in members}
        attention = next((name for name, call in parts.items() if call and "attention_mask" in call.arguments), None)
        mlp = [name for name in parts if name != attention]
        if len(mlp) > 1:  # several in turn: all that is called from the first to the last
            called = [short(call) for call in inside if "." not in short(call)]
            mlp = called[called.index(mlp[0]) : called.index(mlp[-1]) + 1]
        norm_of = {child(reader): norm for norm in norms for reader in readers[norm.name]}
        norm = norm_of[attention or mlp[0]]
        mlp_norm = norm_of[mlp[0]] if mlp and norm_of[mlp[0]] is not norm else None
        arguments = [item for call in parts.values() if call for item in call.arguments.items()]
        residual = [name for name, value in arguments if isinstance(value, Tensor) and equal(value, norms[0].input)]
        return BlockSpec(
            norm=short(norm),
            w_in=tuple(short(reader) for n in (norm, mlp_norm) if n is not None for reader in readers[n.name]),
            w_out=tuple(map(short, writers)),
            attention=attention,
            mlp=tuple(mlp),
            mlp_norm=mlp_norm and short(mlp_norm),
            residual=residual[0] if residual else None,
        )

    def _end(self) -> tuple[str, str]:
        """The names of the final norm and the head."""
        last, head = self.call_of[self.layers[-1]].output, self.call_of.get(self.model.get_output_embeddings())
        reading = [call for call in self.calls if equal(call.input, last) and norm_kind(call.module, last.shape[-1])]
        if head is None or not reading or not equal(reading[-1].output, head.input):
            raise Obstacle("what the head reads is not a norm of what the last layer writes")
        return self._short(reading[-1]), head.name

    def _config_name_of(self, number: float) -> str:
        numbers = {name: value for name, value in vars(self.model.config).items() if isinstance(value, (int, float))}
        names = [name for name, value in numbers.items() if math.isclose(value, number, rel_tol=1e-6)]
        if not names:
            raise Obstacle(f"every branch is multiplied by {number:g}, which no field of the config says")
        return max(names, key=lambda name: isinstance(numbers[name], float))  # a whole number may be a count

    def _short(self, call: Call) -> str:
        return call.name.removeprefix(f"{self.decoder}.")
