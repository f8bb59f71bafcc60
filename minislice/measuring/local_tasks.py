"""Local copies of zero-shot tasks, so that they run without a hub: FOLDER/TASK.jsonl, one item a line.

The task stays the harness's own (its prompt, its metrics); only where the items come from is changed. An item has the
fields of the task's data set on the hub, or those that the harness of 2021 made of them, as several published copies
have them: `query`, `choices` and `gold`, the index of the right choice; for WinoGrande `context_options`,
`continuation`, `gold`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LocalTask:
    """One of the harness's tasks: the file that defines it, the fields of an item, and what the choices are."""

    file: str  # below lm_eval/tasks
    fields: tuple[str, ...]  # the last one says which choice is right
    choices: Callable[[dict], tuple[list, list]]  # of an item: the texts, and what the last field says for each
    converted: tuple[str, ...]  # fields of the harness of 2021; "gold" counts the choices from 0
    restore: Callable[[dict], dict]  # from those


def _piqa(item: dict) -> dict:
    first, second = item["choices"]
    return {"goal": _question(item), "sol1": first, "sol2": second, "label": item["gold"]}


def _arc(item: dict) -> dict:
    labels = [str(number) for number, _ in enumerate(item["choices"])]
    choices = {"text": item["choices"], "label": labels}
    return {"question": _question(item), "choices": choices, "answerKey": str(item["gold"])}


def _winogrande(item: dict) -> dict:
    first, second = item["context_options"]  # each with what stands before it, so the sentence begins at the gap
    sentence = f"_ {item['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": item["gold"] + 1}


def _hellaswag(item: dict) -> dict:
    activity, context = item["query"].split(": ", 1)
    fields = {"activity_label": activity, "ctx_a": context, "ctx_b": ""}
    return {**fields, "endings": item["choices"], "label": item["gold"]}


def _question(item: dict) -> str:
    """What stands between "Question: ", and "Answer:" if that is there; the harness writes both itself."""
    return item["query"].removeprefix("Question: ").removesuffix("Answer:").removesuffix("\n")


def _options(item: dict) -> tuple[list, list]:
    if "_" not in item["sentence"]:
        raise ValueError("the sentence has no _, which stands for the missing words")
    return [item["option1"], item["option2"]], ["1", "2"]


def _endings(item: dict) -> tuple[list, list]:
    endings = item["endings"]
    if not isinstance(endings, list):
        raise ValueError(f"endings must be a list, got {endings!r}")
    return endings, [str(number) for number, _ in enumerate(endings)]


def _lettered(item: dict) -> tuple[list, list]:
    choices = item["choices"]
    if not isinstance(choices, dict) or len(choices["text"]) != len(choices["label"]):
        raise ValueError('choices must have a "text" and a "label" for each choice, {"text": [...], "label": [...]}')
    return choices["text"], choices["label"]


_QUERY = ("query", "choices", "gold")
LOCAL = {
    "piqa": LocalTask(
        "piqa/piqa.yaml",
        ("goal", "sol1", "sol2", "label"),
        lambda item: ([item["sol1"], item["sol2"]], ["0", "1"]),
        _QUERY,
        _piqa,
    ),
    "winogrande": LocalTask(
        "winogrande/default.yaml",
        ("sentence", "option1", "option2", "answer"),
        _options,
        ("context_options", "continuation", "gold"),
        _winogrande,
    ),
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        _endings,
        _QUERY,
        _hellaswag,
    ),
    "arc_easy": LocalTask("arc/arc_easy.yaml", ("question", "choices", "answerKey"), _lettered, _QUERY, _arc),
    "arc_challenge": LocalTask("arc/arc_challenge.yaml", ("question", "choices", "answerKey"), _lettered, _QUERY, _arc),
}


def read_items(task: str, folder: Path) -> list[dict]:
    """The items of FOLDER/TASK.jsonl, with the fields that the task has on the hub.

    Raises:
        ValueError: no such task or file; a line that is no JSON, lacks fields, or has no usable right answer.
    """
    if task not in LOCAL:
        raise ValueError(f"no local copy of {task} can be read; there are {', '.join(LOCAL)}")
    known, file = LOCAL[task], folder / f"{task}.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} doesn't exist: the items of {task}, one JSON object a line")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # without the mark that some editors put first
    except UnicodeDecodeError as error:
        raise ValueError(f"can't read {file} as utf-8 text: {error}; save it as utf-8") from error
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            item, answer = _item(known, given)
            _, answers = _choices(known, item)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(
                f"{file}, line {number}: an item of {task} has the fields {', '.join(known.fields)}, or "
                f"{', '.join(known.converted)}; {error}"
            ) from error
        right = item[known.fields[-1]]
        if not isinstance(right, (int, str)) or str(right) not in answers:
            raise ValueError(
                f"{file}, line {number}: no right answer ({answer} {given[answer]!r}); a test split has none, take the "
                "validation split"
            )
        item[known.fields[-1]] = int(right) if task == "piqa" else str(right)  # as on the hub
        items.append(item)
    if not items:
        raise ValueError(f"{file} has no items in it")
    return items


def _item(task: LocalTask, given: dict) -> tuple[dict, str]:
    """An item as on the hub, and the field of the given one that says which choice is right."""
    if set(task.fields) <= given.keys():
        return {name: given[name] for name in task.fields}, task.fields[-1]
    if set(task.converted) <= given.keys():
        return task.restore(given), task.converted[-1]
    raise ValueError(f"it has {', '.join(given) or 'nothing'}")


def _choices(task: LocalTask, item: dict) -> tuple[list, list]:
    """As `LocalTask.choices`; every text is one, and no choice is empty."""
    questions = {name: item[name] for name in task.fields[:-1] if name not in ("choices", "endings")}
    for name, value in questions.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, got {value!r}")
    choices, answers = task.choices(item)
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise ValueError(f"a choice must be a text, got {choice!r}")
    return choices, answers


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
        items = read_items(task, source)
        data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        changed = {
            "include": str(definition(task)),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(folder / "cache")},
            "training_split": None,
            "test_split": None,
        }
        # JSON is YAML.
        (folder / f"{task}.yaml").write_text(json.dumps(changed), encoding="utf-8")
