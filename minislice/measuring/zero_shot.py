"""Zero-shot accuracy (section 4, tables 7 to 10), measured by EleutherAI's LM Evaluation Harness.

The paper's five tasks are multiple choice: the answer is the choice that the model finds likeliest. `acc` compares the
log-likelihoods of the choices, `acc_norm` divides each by its choice's number of characters first. The paper names no
metric. Its numbers are acc_norm where the harness has that, and acc for WinoGrande, as in the authors' script.
"""

import contextlib
import copy
import io
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architecture.network import inference
from ..checks import is_several, require, require_int, require_package
from ..corpus.batches import with_what_fits
from .local_tasks import LOCAL, definition, read_items, write_tasks

TASKS = tuple(LOCAL)  # the paper's, in the order of its tables


@dataclass(frozen=True)
class Score:
    """A model's accuracy on one task."""

    task: str
    metric: str  # "acc" or "acc_norm"
    accuracy: float  # percent, as in the paper's tables
    stderr: float  # its standard error, percent; NaN of a single item
    count: int  # items
    correct: tuple[bool, ...]  # of each item, in the task's order


@dataclass(frozen=True)
class ZeroShot:
    """A model's accuracy on several tasks."""

    scores: tuple[Score, ...]
    versions: dict[str, str]  # of the harness, transformers, torch

    @property
    def mean(self) -> float:
        """The mean of the tasks' accuracies, percent: the paper's "average"."""
        return sum(score.accuracy for score in self.scores) / len(self.scores)

    @property
    def stderr(self) -> float:
        """The standard error of `mean`, percent; the tasks' items are independent."""
        return math.sqrt(sum(score.stderr**2 for score in self.scores)) / len(self.scores)

    def __getitem__(self, task: str) -> Score:
        return next(score for score in self.scores if score.task == task)


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str] = TASKS,
    *,
    limit: int | None = None,
    tasks_from: str | Path | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> ZeroShot:
    """Measure a model, dense or sliced, on multiple-choice tasks, without examples in the prompt.

    Args:
        tasks: the harness's names.
        limit: only the first so many items of each task.
        tasks_from: a folder with TASK.jsonl for each task (see `local_tasks`), else they come from the hub.
        batch_size: choices a forward pass; where they don't fit on the GPU, fewer.
    """
    if tokenizer is None:
        raise ValueError("zero-shot tasks are texts: they need the model's tokenizer")
    require_int("limit", 1 if limit is None else limit)
    require_int("batch_size", batch_size)
    tasks = require_tasks([tasks] if isinstance(tasks, str) else tasks, tasks_from)
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"give each task once, and at least one, got {tasks}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    bars = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())  # the harness's
    with tempfile.TemporaryDirectory() as folder, bars, inference(model):
        if tasks_from is not None:
            write_tasks(tasks, Path(tasks_from), Path(folder))
        place = None if tasks_from is None else folder
        results = with_what_fits(lambda size: _evaluate(model, tokenizer, tasks, limit, place, size), batch_size)
    scores = tuple(_score(task, results) for task in tasks)
    return ZeroShot(scores, {name: version(name) for name in ("lm_eval", "transformers", "torch")})


def require_tasks(tasks: Sequence[str], tasks_from: str | Path | None) -> list[str]:
    """The tasks as a list; a ValueError where the harness isn't installed, or a local copy can't be read."""
    require(is_several(tasks) and all(isinstance(task, str) for task in tasks), "tasks", "a list of names", tasks)
    if tasks := list(tasks):
        require_package("lm_eval", "measuring zero-shot tasks", "eval")
    if tasks_from is not None:
        for task in tasks:
            read_items(task, Path(tasks_from))
    return tasks


def _evaluate(model, tokenizer, tasks, limit, folder, batch_size) -> dict:
    import datasets
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # A copy, for the harness gives a tokenizer without a padding token one.
    language = HFLM(model, backend="causal", tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    if folder is None and set(tasks) <= LOCAL.keys():  # to look through thousands of others takes long
        folder = sorted({str(definition(task).parent) for task in tasks})
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if missing := [task for task in tasks if task not in manager.all_subtasks]:
        raise ValueError(f"the LM Evaluation Harness has no task {', '.join(missing)}; give a group's tasks one by one")
    try:
        loaded = manager.load(tasks)
        for task in loaded["tasks"].values():
            task.set_config("num_fewshot", 0)
        return evaluate(language, loaded, limit=limit)
    except (OSError, datasets.exceptions.DatasetsError) as error:  # a ConnectionError is one
        raise ValueError(
            f"can't get {', '.join(tasks)} from the hub: {error}; give a folder of local copies with tasks_from"
        ) from error


def _score(task: str, results: dict) -> Score:
    numbers = results["results"][task]
    metric = next((name for name in ("acc_norm", "acc") if f"{name},none" in numbers), None)
    if metric is None:
        raise ValueError(f"{task} is no multiple-choice task: the harness gives no accuracy for it")
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    if any(math.isnan(response[0]) for sample in samples for response in sample["filtered_resps"]):
        raise ValueError(f"{task}: the logits aren't numbers (NaN); check the weights, or use a wider dtype (--dtype)")
    correct = tuple(bool(sample[metric]) for sample in samples)
    error = numbers[f"{metric}_stderr,none"]  # a text if there is none
    error = 100 * error if isinstance(error, float) else math.nan
    return Score(task, metric, 100 * numbers[f"{metric},none"], error, len(correct), correct)
