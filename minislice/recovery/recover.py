"""Recovery fine-tuning (section 4; tables 3, 9, 10): a sliced network is trained for a little while, with LoRA.

LoRA adds to a matrix W the product of two thin ones, W + (alpha / r) B A with B [out, r] and A [r, in], and trains only
these; in the end the product is added into W, and the network is a sliced network as before, of the same size.
"""

import dataclasses
import math
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..architecture.network import network
from ..checks import require_package
from ..corpus.batches import Tokens, listed, token_batches, with_what_fits
from ..likelihood import perplexity
from ..measuring.provenance import fingerprint, hash_of
from .checkpoints import opened
from .options import RecoveryOptions, RecoveryReport
from .sequences import collate, require_disjoint, rows, split


def recover(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    evaluation: Tokens | None = None,
    folder: str | Path | None = None,
    batch_size: int = 1,
    bf16: bool | None = None,
    gradient_checkpointing: bool | None = None,
    progress: bool = False,
    **options,
) -> RecoveryReport:
    """Fine-tune a sliced model in place with LoRA, and merge what was learned into its weights.

        report = minislice.recover(model, tokens, evaluation=test, steps=50)

    Args:
        tokens: training ids, [sequences, tokens], or an iterable of such batches (see `corpus.batches.Tokens`).
        attention_mask: shaped as the tokens; 0 where padded. No prediction from or of padding is trained.
        evaluation: ids to measure perplexity on, before and after; nothing else depends on them.
        folder: for checkpoints. After an interruption, the same call goes on from the last one. The folder stays.
        batch_size: sequences a forward pass; where a GPU's memory isn't enough, fewer, and more passes a step.
        bf16: compute in bfloat16 (autocast); by default on a GPU that has it.
        gradient_checkpointing: compute each layer's activations twice instead of keeping them; by default on a GPU, and
            where the model does so already.
        progress: show a progress bar with the loss.
        options: the fields of `RecoveryOptions`, where each is explained.

    The model is the same object, of the same size, and set as before (mode, gradient checkpointing);
    ``model.recovery`` is the report too.

    Raises:
        ValueError: PEFT isn't installed; a model that isn't sliced, or was recovered before; tokens or options that
            don't fit; evaluation sequences among the training ones; a loss that isn't a number. The model is unchanged.
    """
    require_package("peft", "recovery fine-tuning", "recover")
    from .training import train

    chosen = RecoveryOptions(**options)
    require_sliced(model)
    training, held_out = split(rows(token_batches(model, tokens, attention_mask, batch_size)), chosen.held_out)
    before = after = None
    if evaluation is not None:
        evaluation = listed(evaluation, "evaluation")
        require_disjoint([*training, *held_out], rows(token_batches(model, evaluation, None, batch_size)))
        before = perplexity(model, evaluation, batch_size=batch_size, progress=progress)
    settings = {
        **dataclasses.asdict(chosen),
        "sequences a step": batch_size * chosen.accumulation,
        "tokens": hash_of(torch.stack([*collate([*training, *held_out]).values()])),
        "model": fingerprint(model),
    }
    on_gpu = model.device.type == "cuda"
    if gradient_checkpointing is None:
        gradient_checkpointing = on_gpu or any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    arguments = {
        "per_device_train_batch_size": batch_size,
        "bf16": on_gpu and torch.cuda.is_bf16_supported() if bf16 is None else bf16,
        "gradient_checkpointing": gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if folder is None else folder).resolve()
        with opened(folder, settings) as checkpoint, torch.cuda.device_of(next(model.parameters())):
            arguments |= {"output_dir": str(folder), "resume_from_checkpoint": checkpoint and str(checkpoint)}
            run = partial(train, model, training, held_out, chosen, arguments, progress)
            state, trained = with_what_fits(run, batch_size)
    seconds = time.perf_counter() - began
    if evaluation is not None:
        after = perplexity(model, evaluation, batch_size=batch_size, progress=progress)
    model.recovery = network(model).model.recovery = RecoveryReport(
        options=chosen,
        sequences=len(training),
        trained=trained,
        steps=state.best_global_step if held_out else state.global_step,
        losses=[entry["loss"] for entry in state.log_history if "loss" in entry],
        held_out=[(e["step"], math.exp(min(e["eval_loss"], 700.0))) for e in state.log_history if "eval_loss" in e],
        before=before,
        after=after,
        seconds=seconds,
    )
    return model.recovery


def require_sliced(model: PreTrainedModel) -> None:
    """Raise a ValueError for a dense model, or one that was recovered before."""
    net = network(model)
    if not net.is_fused:
        raise ValueError("this model isn't sliced: recovery fine-tuning is for what slicing lost; slice it first")
    record = getattr(model.config, "slicing", None) or {}
    if hasattr(net.model, "recovery") or "recovery" in record:
        raise ValueError(
            "this model was recovered before; to train for longer, recover the sliced model again with more steps"
        )
