"""The training itself: PEFT puts LoRA into the network and merges it, transformers' Trainer does the loop.

Imported where it is used: the Trainer takes a second to import, and PEFT is an extra.
"""

import contextlib
import copy
import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import peft
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import PrinterCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from ..architecture.modeling import SlicedForCausalLM
from ..architecture.network import network
from .checkpoints import call_unfinished, call_whole
from .options import RecoveryOptions
from .sequences import IGNORED, collate


def lora_targets(model: PreTrainedModel) -> list[str]:
    """The names of the linears that read and write the signal, in every block; no adapter, no head.

    PEFT knows no experts and routers, and a gate of one number is smaller than its LoRA would be.
    """
    linears = [linear for block in network(model).blocks for linear in block.linears.values()]
    modules = {getattr(linear, "module", linear) for linear in linears if linear.out_features > 1}
    wanted = {module for module in modules if isinstance(module, (nn.Linear, Conv1D))}
    return [name for name, module in model.named_modules() if module in wanted]


def train(
    model: PreTrainedModel,
    training: list,
    held_out: list,
    chosen: RecoveryOptions,
    arguments: dict[str, Any],
    progress: bool,
    batch_size: int,
) -> tuple[TrainerState, int]:
    """Train and merge. Returns the Trainer's state and the number of parameters that were trained.

    Args:
        arguments: of `TrainingArguments`, those that don't depend on `chosen`.
        batch_size: sequences a forward pass; if fewer than `arguments` say, a step takes more passes.
    """
    # PEFT and the Trainer change modules and configs. They get a copy of these, with the same weights in memory.
    twin = copy.deepcopy(model, {id(x): nn.Parameter(x.detach(), x.requires_grad) for x in model.parameters()})
    wrapped = SlicedForCausalLM.wrap(twin)
    getattr(wrapped, "activation_checkpointing_disable", wrapped.gradient_checkpointing_disable)()  # its old name
    wrapped.base.config.use_cache = False  # a layer that computes its activations twice can't fill a cache
    config = peft.LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules=lora_targets(wrapped),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in wrapped.modules()),  # its only linears, then
        modules_to_save=["adapter"] if chosen.train_adapters and network(wrapped).has_adapters else None,
        task_type="CAUSAL_LM",
    )
    sequences_a_step = arguments["per_device_train_batch_size"] * chosen.accumulation
    batch_size = next(size for size in range(batch_size, 0, -1) if sequences_a_step % size == 0)
    steps = chosen.steps or math.ceil(chosen.epochs * math.ceil(len(training) / sequences_a_step))
    watch = Watch(progress)
    early_stopping = [EarlyStoppingCallback(early_stopping_patience=chosen.patience)] if held_out else []
    with watch.bar, warnings.catch_warnings(), torch.enable_grad(), _seeded(chosen.seed):
        warnings.simplefilter("ignore", FutureWarning)  # of renamed arguments: all versions take the old names
        arguments = TrainingArguments(
            **{**arguments, "per_device_train_batch_size": batch_size},
            per_device_eval_batch_size=batch_size,
            gradient_accumulation_steps=sequences_a_step // batch_size,
            max_steps=steps,
            learning_rate=chosen.learning_rate,
            warmup_steps=round(0.05 * steps),
            lr_scheduler_type="linear",
            logging_steps=1,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if held_out else "no",
            eval_steps=chosen.every,
            save_steps=chosen.every,
            load_best_model_at_end=bool(held_out),
            seed=chosen.seed,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type == "cuda",
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one process trains on one GPU, the model's
        if model.device.type == "cuda":  # transformers takes the first GPU, accelerate the current one
            arguments._setup_devices = model.device
            torch.cuda.set_device(model.device)
        lora = peft.get_peft_model(wrapped, config)
        data = {"data_collator": collate, "train_dataset": training, "eval_dataset": held_out or None}
        trainer = CheckpointTrainer(lora, arguments, **data, callbacks=[watch, *early_stopping])
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
        trained, _ = lora.get_nb_trainable_parameters()
        lora.merge_and_unload()
    model.load_state_dict(twin.state_dict())  # PEFT trains a copy of an adapter
    return trainer.state, trained


class CheckpointTrainer(Trainer):
    """transformers' Trainer; its checkpoints are on the disk, and one that it can't write is one kind of error."""

    def evaluation_loop(self, dataloader, *arguments, **named):
        """The mean loss of all predictions, as `perplexity` takes it; transformers' is the mean of batches."""
        self.model.eval()
        total, count = 0.0, 0
        for batch in dataloader:
            loss, _, _ = self.prediction_step(self.model, batch, prediction_loss_only=True)
            predictions = int((batch["labels"] != IGNORED).sum())
            total, count = total + loss.item() * predictions, count + predictions
        return EvalLoopOutput(None, None, {"eval_loss": total / count}, len(dataloader.dataset))

    def _save_checkpoint(self, *arguments):
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        try:
            call_unfinished(folder)
            super()._save_checkpoint(*arguments)
            call_whole(folder, self.state.best_model_checkpoint)
        except Exception as error:  # of safetensors, torch, PEFT or the system
            raise OSError(f"can't write {folder}: {error}; make room, and run it again to go on") from error


class Watch(TrainerCallback):
    """Shows a bar with the loss; stops where the loss is no number."""

    def __init__(self, progress: bool):
        self.bar = tqdm(desc="recovery", disable=not progress, leave=False)

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar.reset(state.max_steps)
        self.bar.update(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in {"loss", "eval_loss"} & logs.keys():
            if not math.isfinite(logs[name]):
                told = f"the loss of step {state.global_step} is {logs[name]}: training diverged"
                raise ValueError(f"{told}; give a lower learning_rate than {args.learning_rate}")
            self.bar.set_postfix({name: f"{logs[name]:.3f}"}, refresh=False)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """All random generators seeded, every GPU's too; afterwards they are as they were."""
    generators = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(generators[0])
        numpy.random.set_state(generators[1])
