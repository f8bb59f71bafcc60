"""Local copies of zero-shot tasks, so that they run without a hub: FOLDER/TASK.jsonl, one item a line.

The task stays the harness's own, with its prompt and its metrics; only the items come from the file. An item has the
fields of the task's data set on the hub. Several published copies have the fields of the harness of 2021 instead:
`query`, `choices` and `gold`, the index of the right choice; for WinoGrande `context_options`, `continuation`, `gold`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Item = tuple[dict, list, list]  # with the fields on the hub; its choices; what its last field says for each of them


@dataclass(frozen=True)
class LocalTask:
    """One of the harness's tasks."""

    file: str  # that defines it, below lm_eval/tasks
    fields: tuple[str, ...]  # of an item on the hub; the last one says which choice is right
    read: Callable[[dict], Item]  # an item with the fields on the hub, or with those of 2021


def _piqa(item: dict) -> Item:
    if "query" in item:
        first, second = item["choices"]
        item = {"goal": _question(item), "sol1": first, "sol2": second, "label": item["gold"]}
    return item, [item["sol1"], item["sol2"]], [0, 1]


def _winogrande(item: dict) -> Item:
    if "continuation" in item:  # each option with what stands before it, so the sentence begins at the gap
        first, second = item["context_options"]
        sentence = f"_ {item['continuation']}"
        item = {"sentence": sentence, "option1": first, "option2": second, "answer": item["gold"] + 1}
    if "_" not in item["sentence"]:
        raise ValueError("the sentence has no _, which stands for the missing words")
    return item, [item["option1"], item["option2"]], ["1", "2"]


def _hellaswag(item: dict) -> Item:
    if "query" in item:
        activity, context = item["query"].split(": ", 1)
        fields = {"activity_label": activity, "ctx_a": context, "ctx_b": ""}
        item = {**fields, "endings": item["choices"], "label": item["gold"]}
    return item, item["endings"], [str(number) for number in range(len(item["endings"]))]


def _arc(item: dict) -> Item:
    if "query" in item:
        labels = [str(number) for number in range(len(item["choices"]))]
        choices = {"text": item["choices"], "label": labels}
        item = {"question": _question(item), "choices": choices, "answerKey": item["gold"]}
    choices = item["choices"]
    if not isinstance(choices, dict) or len(choices["text"]) != len(choices["label"]):
        raise ValueError('choices must have a text and a label for each, {"text": [...], "label": [...]}')
    return item, choices["text"], choices["label"]


def _question(item: dict) -> str:
    """The text between "Question: " and "Answer:", if that is there; the harness writes both itself."""
    return item["query"].removeprefix("Question: ").removesuffix("Answer:").removesuffix("\n")


_ARC = ("question", "choices", "answerKey")
LOCAL = {
    "piqa": LocalTask("piqa/piqa.yaml", ("goal", "sol1", "sol2", "label"), _piqa),
    "winogrande": LocalTask("winogrande/default.yaml", ("sentence", "option1", "option2", "answer"), _winogrande),
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml", ("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag
    ),
    "arc_easy": LocalTask("arc/arc_easy.yaml", _ARC, _arc),
    "arc_challenge": LocalTask("arc/arc_challenge.yaml", _ARC, _arc),
}


def read_items(task: str, folder: Path) -> list[dict]:
    """The items of FOLDER/TASK.jsonl, with the fields that the task has on the hub.

    Raises:
        ValueError: no such task or file; a line that is no JSON, lacks fields, or has no usable right answer.
    """
    if task not in LOCAL:
        raise ValueError(f"no local copy of {task} can be read; there are {', '.join(LOCAL)}")
    file = folder / f"{task}.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} doesn't exist: the items of {task}, one JSON object a line")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # without the mark that some editors put first
    except UnicodeDecodeError as error:
        raise ValueError(f"can't read {file} as utf-8 text: {error}; save it as utf-8") from error
    items = [_item(LOCAL[task], line, f"{file}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise ValueError(f"{file} has no items in it")
    return items


def _item(task: LocalTask, line: str, place: str) -> dict:
    *fields, answer = task.fields
    try:
        item, choices, answers = task.read(json.loads(line))
        item = {name: item[name] for name in task.fields}
        texts = [item[name] for name in fields if name not in ("choices", "endings")]
        if not isinstance(choices, list) or not all(isinstance(text, str) for text in (*texts, *choices)):
            raise ValueError("what should be a text, or a list of texts, is something else")
        if not all(choice.strip() for choice in choices):
            raise ValueError("a choice is empty")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{place}: an item has the fields {', '.join(task.fields)}; {what}") from error
    right = [known for known in answers if str(known) == str(item[answer])]
    if not right:
        raise ValueError(
            f"{place}: no right answer ({answer} {item[answer]!r}); a test split has none, take the validation split"
        )
    return {**item, answer: right[0]}


def definition(task: str) -> Path:
    """The harness's own file that defines a task."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent / LOCAL[task].file


def write_tasks(tasks: list[str], source: Path, folder: Path) -> None:
    """Write, for the harness to include, each task as its own with the items of `source`.

    Raises:
        ValueError: see `read_items`.
    """
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
