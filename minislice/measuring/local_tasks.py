"""Local copies of zero-shot tasks, so that they run without a hub: FOLDER/TASK.jsonl, one item a line.

The task stays the harness's own, with its prompt and its metrics. Only the items come from the file, with the fields
that they have in the task's data set on the hub.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from ..corpus.text import json_lines

OLD_FORM = "this is the harness's form of 2021; python notebooks/measure/tasks_of_2021.py OLD NEW rewrites such files"


@dataclass(frozen=True)
class LocalTask:
    """One of the harness's tasks."""

    file: str  # that defines it, below lm_eval/tasks
    fields: tuple[str, ...]  # of an item; the last one says which choice is right
    choices: Callable[[dict], dict]  # of an item: the text of each choice, by what the last field says for it


ARC = LocalTask(
    "arc/arc_easy.yaml",
    ("question", "choices", "answerKey"),
    lambda item: dict(zip(item["choices"]["label"], item["choices"]["text"], strict=True)),
)
LOCAL = {
    "piqa": LocalTask(
        "piqa/piqa.yaml", ("goal", "sol1", "sol2", "label"), lambda item: {0: item["sol1"], 1: item["sol2"]}
    ),
    "winogrande": LocalTask(
        "winogrande/default.yaml",
        ("sentence", "option1", "option2", "answer"),
        lambda item: {"1": item["option1"], "2": item["option2"]},
    ),
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        lambda item: {str(number): ending for number, ending in enumerate(item["endings"])},
    ),
    "arc_easy": ARC,
    "arc_challenge": replace(ARC, file="arc/arc_challenge.yaml"),
}


def read_items(task: str, folder: Path) -> list[dict]:
    """The items of FOLDER/TASK.jsonl."""
    if task not in LOCAL:
        raise ValueError(f"no local copy of {task} can be read; there are {', '.join(LOCAL)}")
    file = folder / f"{task}.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} doesn't exist: the items of {task}, one JSON object a line")
    try:
        items = [_item(LOCAL[task], item, f"line {number}") for number, item in json_lines(file)]
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from error
    if not items:
        raise ValueError(f"{file} has no items in it")
    return items


def _item(task: LocalTask, item: dict, place: str) -> dict:
    answer = task.fields[-1]
    try:
        if "gold" in item:
            raise ValueError(OLD_FORM)
        item = {name: item[name] for name in task.fields}
        if "_" not in item.get("sentence", "_"):
            raise ValueError("the sentence has no _, which stands for the missing words")
        choices = task.choices(item)
        if not all(text.strip() for text in choices.values()):
            raise ValueError("a choice is empty")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{place}: an item has the fields {', '.join(task.fields)}, as on the hub; {what}") from error
    right = [label for label in choices if str(label) == str(item[answer])]
    if not right:
        raise ValueError(
            f"{place}: no right answer ({answer} {item[answer]!r}); a test split has none, take the validation split"
        )
    return {**item, answer: right[0]}


def definition(task: str) -> Path:
    """The harness's own file that defines a task."""
    return Path(find_spec("lm_eval.tasks").origin).parent / LOCAL[task].file


def write_tasks(tasks: list[str], source: Path, folder: Path) -> None:
    """Write, for the harness to include, each task as its own with the items of `source` (see `read_items`)."""
    for task in tasks:
        data = folder / f"{task}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in read_items(task, source)), encoding="utf-8")
        changed = {
            "include": str(definition(task)),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(folder / "cache")},
            "training_split": None,
            "test_split": None,
        }
        (folder / f"{task}.yaml").write_text(json.dumps(changed), encoding="utf-8")  # JSON is YAML
