"""Does a model have the invariance (theorem 1)? Do each step of SliceGPT that must not change the logits, and measure.

`verify` compares each step with a reference in float64: "loaded" and "fused" with the trained model, the rotations
with the fused model. "loaded" only casts the model to the dtype, and so shows the rounding error that the dtype makes.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .architecture.network import inference, network
from .checks import is_several, require, require_choice, require_seed
from .corpus.batches import Tokens, token_batches
from .fusion import fuse
from .likelihood import logits_of_batch, perplexity
from .options import SlicingOptions
from .rotation import require_trained, rotate
from .slicing import slice_model

# The largest error of the logits, as a fraction of the largest logit, that rounding alone can explain.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 1e-1, "float16": 2e-2}
# For "loaded" and "fused" in models whose own norm is always float32, as LLaMA's: each norm rounds by 6e-8.
FLOAT32_NORM_TOLERANCE = 1e-5
# For mixtures of experts: the router's softmax computes in float32, and in 16 bits rounding sends some tokens to other
# experts, which changes their logits completely: little but a NaN fails there.
ROUTED_TOLERANCES = {"float64": 1e-5, "float32": 1e-4, "bfloat16": 2.0, "float16": 2.0}

PAPER = vars(SlicingOptions.paper(slicing=0))
STEPS = {
    "loaded": lambda model, tokens, seed: model,
    "fused": lambda model, tokens, seed: fuse(model),
    "rotated": lambda model, tokens, seed: rotate(model, seed=seed),
    "rotated per block": lambda model, tokens, seed: rotate(model, per_block=True, seed=seed),
    "rotated by PCA": lambda model, tokens, seed: slice_model(model, tokens, **PAPER),
}
UNROTATED = ["loaded", "fused"]  # compared with the trained model; the other steps with the fused model


@dataclass(frozen=True)
class Measurement:
    """One step in one dtype."""

    dtype: str
    step: str
    error: float  # of the logits: max |difference| over max |reference|
    tolerance: float
    perplexity: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


@dataclass(frozen=True)
class Verification:
    """The measurements of `verify`."""

    measurements: list[Measurement]
    reference_perplexity: float  # of the trained model, in float64

    @property
    def passed(self) -> bool:
        return all(measurement.passed for measurement in self.measurements)

    def measured(self) -> dict:
        """The numbers, in JSON's types."""
        rows = [asdict(m) | {"passed": m.passed} for m in self.measurements]
        return {"reference_perplexity": self.reference_perplexity, "measurements": rows}

    def __str__(self) -> str:
        rows = [f"{'dtype':9s} {'step':18s} {'logits error':>12s} {'tolerance':>10s} {'perplexity':>12s}"]
        for m in self.measurements:
            numbers = f"{m.error:12.1e} {m.tolerance:10.0e} {m.perplexity:12.4f}"
            rows.append(f"{m.dtype:9s} {m.step:18s} {numbers}  {'ok' if m.passed else 'FAILED'}")
        return "\n".join([*rows, f"The model {'has' if self.passed else 'does NOT have'} the invariance."])


def batch_logits(model: PreTrainedModel, tokens: Tokens, attention_mask=None, batch_size: int = 8) -> Iterator[Tensor]:
    """The logits of each batch at all tokens but padding, [tokens, vocabulary], on the CPU."""
    for batch in token_batches(model, tokens, attention_mask, batch_size):
        with inference(model):
            output = logits_of_batch(model, batch)
        yield (output.flatten(0, 1) if batch.mask is None else output[batch.mask]).cpu()


def logits_of(model: PreTrainedModel, tokens: Tokens, attention_mask=None, batch_size: int = 8) -> list[Tensor]:
    """A list with the logits of each batch, in float64."""
    return [logits.double() for logits in batch_logits(model, tokens, attention_mask, batch_size)]


def relative_error(logits: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """Max |logits - reference| over max |reference|, batch by batch, in float64; NaN if any logit is."""
    worst = largest = torch.zeros((), dtype=torch.float64, device="cpu")
    for x, y in zip(logits, reference, strict=True):
        if len(x):  # a batch may be padding alone
            worst = torch.maximum(worst, (x.double() - y.double()).abs().max().cpu())
            largest = torch.maximum(largest, y.double().abs().max().cpu())
    return (worst / largest).item()


def require_dtypes(dtypes: Iterable[str]) -> None:
    require(is_several(dtypes) and len(dtypes) > 0, "dtypes", f"some of {', '.join(TOLERANCES)}", dtypes)
    for dtype in dtypes:
        require_choice("dtypes", dtype, TOLERANCES)


def in_dtype(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """A copy in another dtype, as loading makes it: buffers that no file holds, such as RoPE's frequencies, stay."""
    copied = copy.deepcopy(model).to(getattr(torch, dtype))
    for module, trained in zip(copied.modules(), model.modules(), strict=True):
        for name in module._non_persistent_buffers_set:
            module._buffers[name] = trained._buffers[name]
    return copied


def _let_go(model: PreTrainedModel) -> None:
    """Empty a model that nobody needs any more: parts of a fused one refer to it, and would keep its memory."""
    for module in [*model.modules()]:
        vars(module).clear()


def verify(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    dtypes: Iterable[str] = tuple(TOLERANCES),
    seed: int = 0,
    batch_size: int = 1,
    progress: bool = False,
) -> Verification:
    """Measure how much the logits change when the model is fused, rotated, rotated per block, rotated by PCA.

    The model itself does not change: each step works on a copy. The logits at all tokens are in memory, in float64.

    Args:
        tokens: ids, [sequences, tokens], or an iterable of such batches; for the PCA and for the comparison.
        dtypes: which of float64, float32, bfloat16 and float16.
        seed: for the random rotations.
        batch_size: sequences computed together.

    Raises:
        ValueError: a model that is fused or sliced already; no such dtype; tokens that don't fit the model.
    """
    seed = require_seed(seed)
    require_dtypes(dtypes)
    net = network(model)
    require_trained(net, "verify")
    batches = token_batches(model, tokens, attention_mask, batch_size)
    tokens = [{"input_ids": batch.ids, "attention_mask": batch.mask} for batch in batches]
    tolerances = ROUTED_TOLERANCES if net.has_experts else TOLERANCES
    own_norm = 0.0 if isinstance(net.final_norm, nn.LayerNorm) else FLOAT32_NORM_TOLERANCE
    measured = {}
    with tqdm(total=len(dtypes) * len(STEPS), desc="verify", disable=not progress, leave=False) as bar:
        for steps in (UNROTATED, [step for step in STEPS if step not in UNROTATED]):  # one reference at a time
            exact = in_dtype(model, "float64")
            if steps is UNROTATED:
                reference_perplexity = perplexity(exact, tokens, batch_size=batch_size)
            else:
                fuse(exact)
            reference = logits_of(exact, tokens, batch_size=batch_size)
            _let_go(exact)
            del exact
            for dtype, step in itertools.product(dtypes, steps):
                changed = STEPS[step](in_dtype(model, dtype), tokens, seed)
                error = relative_error(batch_logits(changed, tokens, batch_size=batch_size), reference)
                tolerance = max(tolerances[dtype], own_norm if steps is UNROTATED else 0.0)
                value = perplexity(changed, tokens, batch_size=batch_size)
                measured[dtype, step] = Measurement(dtype, step, error, tolerance, value)
                _let_go(changed)
                del changed
                bar.update()
            del reference
    return Verification([measured[case] for case in itertools.product(dtypes, STEPS)], reference_perplexity)
