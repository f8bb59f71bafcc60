"""Does a model have the invariance (theorem 1)? Do each step of SliceGPT that must not change it, and measure.

`verify` is what `minislice verify` runs. It compares with float64: "loaded" and "fused" with the model as it is, the
rotations with the fused model. "loaded" is the model merely cast to the dtype, so it shows how much of an error is the
dtype's alone.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.network import inference, network
from ..corpus.batches import Tokens, token_batches
from ..fusion import fuse
from ..rotation import require_whole, rotate
from ..slicing import slice_model
from .perplexity import perplexity

# The largest error of the logits, as a fraction of the largest logit, that rounding alone explains.
TOLERANCES = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 1e-1, "float16": 2e-2}
# Fusion's, where the model's own norm computes in float32 whatever the dtype (LLaMA's) and so rounds the reference, by
# 6e-8 at each norm; layers amplify it.
FLOAT32_NORM_TOLERANCE = 1e-5

STEPS = {
    "loaded": lambda model, tokens, mask, seed: model,
    "fused": lambda model, tokens, mask, seed: fuse(model),
    "rotated": lambda model, tokens, mask, seed: rotate(model, seed=seed),
    "rotated per block": lambda model, tokens, mask, seed: rotate(model, per_block=True, seed=seed),
    "rotated by PCA": lambda model, tokens, mask, seed: slice_model(model, tokens, mask, slicing=0, adapter="full"),
}


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
    """What `verify` found."""

    measurements: list[Measurement]
    reference_perplexity: float  # of the model as it is, in float64

    @property
    def passed(self) -> bool:
        return all(measurement.passed for measurement in self.measurements)

    def __str__(self) -> str:
        rows = [f"{'dtype':9s} {'step':18s} {'logits error':>12s} {'tolerance':>10s} {'perplexity':>12s}"]
        for m in self.measurements:
            verdict = "ok" if m.passed else "FAILED"
            rows.append(
                f"{m.dtype:9s} {m.step:18s} {m.error:12.1e} {m.tolerance:10.0e} {m.perplexity:12.4f}  {verdict}"
            )
        verdict = "has" if self.passed else "does NOT have"
        return "\n".join([*rows, f"The model {verdict} the invariance."])


def logits_of(model: PreTrainedModel, tokens: Tokens, attention_mask=None, batch_size: int = 8) -> list[Tensor]:
    """The logits of each batch at the tokens that aren't padding, [tokens, vocabulary], in float64 on the CPU."""
    logits = []
    with inference(model):
        for batch in token_batches(model, tokens, attention_mask, batch_size):
            mask = None if batch.mask is None else batch.mask.long()
            output = model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits
            logits.append((output.flatten(0, 1) if mask is None else output[batch.mask]).double().cpu())
    return logits


def relative_error(logits: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """Max |logits - reference| over max |reference|; NaN if any logit is."""
    pairs = [(x, y) for x, y in zip(logits, reference, strict=True) if len(x)]  # a batch may be padding alone
    worst = torch.stack([(x - y).abs().max() for x, y in pairs]).max()
    return (worst / torch.stack([y.abs().max() for _, y in pairs]).max()).item()


def verify(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    dtypes: Iterable[str] = tuple(TOLERANCES),
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> Verification:
    """Measure what fusing, rotating, rotating per block and rotating onto the principal components change.

    The model itself is not touched; each step works on a copy.

    Args:
        tokens: ids, [sequences, tokens], or an iterable of such batches; both for the PCA and for the comparison.
        attention_mask: as the tokens; 0 where padded.
        dtypes: which of float64, float32, bfloat16 and float16.
        seed: of the random rotations.

    Raises:
        ValueError: a dtype that isn't one of these, tokens or a model that don't fit, a model that is fused already.
    """
    dtypes = list(dtypes)
    unknown = [dtype for dtype in dtypes if dtype not in TOLERANCES]
    if unknown or not dtypes:
        raise ValueError(f"dtypes must be some of {', '.join(TOLERANCES)}, got {', '.join(unknown) or 'none'}")
    net = network(model)
    require_whole(net, "verify")
    if net.is_fused:
        raise ValueError("can't verify this model: it is fused already; start again from the trained model")
    batches = token_batches(model, tokens, attention_mask, batch_size)
    ids = [batch.ids for batch in batches]
    masks = [torch.ones_like(batch.ids) if batch.mask is None else batch.mask for batch in batches]
    exact = copy.deepcopy(model).to(torch.float64)
    reference_perplexity = perplexity(exact, ids, masks, batch_size=batch_size)
    dense = logits_of(exact, ids, masks, batch_size)
    fused = logits_of(fuse(exact), ids, masks, batch_size)
    del exact
    fusion_tolerance = 0.0 if isinstance(net.final_norm, nn.LayerNorm) else FLOAT32_NORM_TOLERANCE
    measurements = []
    tasks = [(dtype, step) for dtype in dtypes for step in STEPS]
    for dtype, step in tqdm(tasks, desc="verify", disable=not progress, leave=False):
        changed = STEPS[step](copy.deepcopy(model).to(getattr(torch, dtype)), ids, masks, seed)
        before_rotation = step in ("loaded", "fused")
        logits = logits_of(changed, ids, masks, batch_size)
        measurements.append(
            Measurement(
                dtype=dtype,
                step=step,
                error=relative_error(logits, dense if before_rotation else fused),
                tolerance=max(TOLERANCES[dtype], fusion_tolerance if before_rotation else 0.0),
                perplexity=perplexity(changed, ids, masks, batch_size=batch_size),
            )
        )
    return Verification(measurements, reference_perplexity)
