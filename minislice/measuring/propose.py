"""Which entry of the table would describe a model? Found from what tensors flow where.

A copy of the model, with every parameter redrawn, runs on a few random tokens in float64, and every module's input and
output is kept. Then, in the order of the calls:

- a norm is what gives the same for x and 2 x, and a LayerNorm what gives the same for x + 1 too
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
from .observed import SAME, Call, calls_of, equal, explain, norm_kind, redrawn


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
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.calls = calls_of(model, ids)
        self.by_name = {call.name: call for call in self.calls}
        self.layers = self._layers()
        self.layers_name = self.names[self.layers]
        self.decoder = self.layers_name.rpartition(".")[0]
        self.kind: NormKind | None = None
        self.scale = 1.0

    def family(self) -> Family:
        """The entry, or an Obstacle."""
        embeddings, embedding_norm = self._embeddings()
        blocks = [self._blocks(self.names[layer]) for layer in self.layers]
        if different := [index for index, others in enumerate(blocks) if others != blocks[0]]:
            raise Obstacle(
                f"layer {different[0]} is made of other blocks than layer 0, and what decides that can't be seen: "
                "`blocks` has to be a function of the config and the layer's index"
            )
        final_norm, head = self._end()
        if final_norm == embedding_norm:
            raise Obstacle(f"{final_norm} stands behind the embeddings and before the head, where each needs its own")
        source = inspect.getsource(type(self.model.get_submodule(self.decoder)).forward)
        shaped = f"{self.decoder}.drop" in self.by_name and ".view(output_shape)" in source  # as `last_shaped_as` says
        return Family(
            decoder=self.decoder,
            embeddings=embeddings,
            final_norm=final_norm,
            blocks=blocks[0],
            norm=self.kind,
            stock_norm="its class wasn't looked at for this",
            layers=self.layers_name.rpartition(".")[2],
            embedding_norm=embedding_norm,
            last_shaped_as="drop" if shaped else None,
            branch_scale=self._config_name_of(self.scale) if self.scale != 1 else None,
            head=head,
            returns_tuple=self._returns_tuple(),
        )

    def _returns_tuple(self) -> bool | None:
        """Whether a layer returns a tuple, where its arguments don't tell."""
        returned = self.by_name[self.names[self.layers[0]]].returned_tuple
        told = "output_attentions" in inspect.signature(self.layers[0].forward).parameters
        return None if returned == told else returned

    def _layers(self) -> nn.ModuleList:
        lists = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        called = [m for m in lists if len(m) and all(self.names[layer] in self.by_name for layer in m)]
        if not called:
            raise Obstacle("it has no nn.ModuleList of layers that are called one after the other")
        return max(called, key=lambda m: sum(parameter.numel() for parameter in m.parameters()))

    def _embeddings(self) -> tuple[tuple[str, ...], str | None]:
        """The tables whose sum the first layer reads, and a norm of that sum."""
        start = self.by_name[self.names[self.layers[0]]].input
        tables = [call for call in self.calls if isinstance(call.module, nn.Embedding)]
        fitting = [call for call in tables if call.output.shape in (start.shape, start[:1].shape, start.shape[1:])]
        outputs = [call.output.expand_as(start) for call in fitting]
        weights, explained = explain(start, outputs)
        norm = None
        before = [call for call in self.calls if equal(call.output, start)]
        if not explained and before and norm_kind(before[0].module, start.shape[-1]):
            norm = self._short(before[0])
            weights, explained = explain(before[0].input, outputs)
        if not explained:
            raise Obstacle(
                "what the first layer reads is not a sum of embeddings "
                f"({', '.join(call.name for call in tables)}), nor a norm of one"
            )
        used = [call for call, weight in zip(fitting, weights, strict=True) if abs(weight) > SAME]
        used.sort(key=lambda call: call.module is not self.model.get_input_embeddings())  # the tokens' table first
        return tuple(map(self._short, used)), norm

    def _blocks(self, layer: str) -> tuple[BlockSpec, ...]:
        whole = self.by_name[layer]
        inside = [call for call in self.calls if call.name.startswith(f"{layer}.")]
        width = whole.input.shape[-1]
        signal, blocks, norms, added = whole.input, [], [], []
        for call in inside:
            kind = norm_kind(call.module, width)
            if is_linear(call.module) and equal(call.input, signal):
                raise Obstacle(f"{self._short(call)} reads the signal, and no norm stands before it")
            if kind is not None and not equal(call.input, signal):
                writers = self._writers(signal, call.input, added, optional=True)
                if writers is not None:  # a new boundary
                    blocks.append((norms, writers))
                    signal, norms, added = call.input, [], []
            if kind is not None and equal(call.input, signal):
                if self.kind not in (None, kind):
                    raise Obstacle(f"{self._short(call)} is another kind of norm than the others: {kind}")
                self.kind = kind
                norms.append(call)
            added.append(call)
        blocks.append((norms, self._writers(signal, whole.output, added)))
        return tuple(self._spec(layer, inside, norms, writers) for norms, writers in blocks)

    def _writers(self, before: Tensor, after: Tensor, calls: list[Call], optional: bool = False) -> list[Call] | None:
        """The linears whose outputs, times one number, are what was added to the signal."""
        if after.numel() != before.numel():
            return None
        after = after.reshape(before.shape)  # some flatten sequences and tokens for the MLP
        linears = [c for c in calls if is_linear(c.module) and c.output.numel() == after.numel()]
        outputs = [c.output for c in linears]
        weights, explained = explain(after - before, outputs)
        if explained:
            used = {round(w.item(), 9) for w in weights if abs(w) > SAME}
            if len(used) != 1 or self.scale not in (1.0, *used):
                raise Obstacle(f"what is added to the signal is multiplied by different numbers: {self.scale}, {used}")
            self.scale = used.pop()
            return [c for c, w in zip(linears, weights, strict=True) if abs(w) > SAME]
        weights, explained = explain(after - before, outputs, by_token=True)
        norms = [c for c in calls if norm_kind(c.module, before.shape[-1])]
        behind = any(equal(norm.input, output) for norm in norms for output in outputs)
        if explained and not behind:  # times what a gate gives, as a shared expert's
            return [c for c, w in zip(linears, weights, strict=True) if w.abs().max() > SAME]
        if optional:
            return None
        norms = [norm for norm in norms if norm.output.numel() == after.numel()]
        weights, explained = explain(after, [before, *(c.output for c in (*norms, *linears))])
        if not explained:
            raise Obstacle("what is added to the signal is not a sum of linears' outputs")
        names = ", ".join(self._short(c) for c, w in zip(norms, weights[1:], strict=False) if abs(w) > SAME)
        if abs(weights[0]) < SAME:
            raise Obstacle(
                f"the residual connection carries the scaled output of {names}, not the signal, and a scale does not "
                "commute with a rotation"
            )
        raise Obstacle(
            f"a norm with a scale stands behind the branch ({names}): what it adds to the signal is "
            "RMSNorm(f W_out) diag(w), and diag(w) does not commute with a rotation"
        )

    def _spec(self, layer: str, inside: list[Call], norms: list[Call], writers: list[Call]) -> BlockSpec:
        def short(call: Call) -> str:
            return call.name[len(layer) + 1 :]

        def child(call: Call) -> str:
            return short(call).split(".")[0]

        readers = {n.name: [c for c in inside if is_linear(c.module) and equal(c.input, n.output)] for n in norms}
        members = [*(reader for norm in norms for reader in readers[norm.name]), *writers]
        if not norms or not members:
            raise Obstacle(f"a branch of {layer} has no norm that reads the signal")
        parts = {child(call): self.by_name.get(f"{layer}.{child(call)}") for call in members}
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
        last = self.by_name[self.names[self.layers[-1]]].output
        head = self.by_name.get(self.names.get(self.model.get_output_embeddings()))
        reading = [call for call in self.calls if equal(call.input, last) and norm_kind(call.module, last.shape[-1])]
        if head is None or not reading or not equal(reading[-1].output, head.input):
            raise Obstacle("what the head reads is not a norm of what the last layer writes")
        return self._short(reading[-1]), head.name

    def _config_name_of(self, number: float) -> str:
        fields = vars(self.model.config).items()
        names = [name for name, value in fields if isinstance(value, (int, float)) and math.isclose(value, number)]
        if not names:
            raise Obstacle(f"every branch is multiplied by {number:g}, which no field of the config says")
        return names[0]

    def _short(self, call: Call) -> str:
        return call.name.removeprefix(f"{self.decoder}.")
