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

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class LocalTask:
    """One of the harness's tasks: where it defines it, the fields that it reads, how a converted item becomes one."""

    file: str  # below lm_eval/tasks
    fields: tuple[str, ...]
    converted: tuple[str, ...]
    restore: Callable[[dict], dict]


def _piqa(item: dict) -> dict:
    first, second = item["choices"]
    return {"goal": _question(item), "sol1": first, "sol2": second, "label": item["gold"]}


def _arc(item: dict) -> dict:
    labels = list(LETTERS[: len(item["choices"])])
    choices = {"text": item["choices"], "label": labels}
    return {"question": _question(item), "choices": choices, "answerKey": labels[item["gold"]]}


def _winogrande(item: dict) -> dict:
    first, second = item["context_options"]  # each with what stands before it, so the sentence begins at the gap
    sentence = f"_ {item['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(item["gold"] + 1)}


def _hellaswag(item: dict) -> dict:
    activity, context = item["query"].split(": ", 1)
    return {
        "activity_label": activity,
        "ctx_a": context,
        "ctx_b": "",
        "endings": item["choices"],
        "label": item["gold"],
    }


def _question(item: dict) -> str:
    """What stands between "Question: ", and "Answer:" if that is there; the harness writes both itself."""
    return item["query"].removeprefix("Question: ").removesuffix("Answer:").removesuffix("\n")


_QUERY = ("query", "choices", "gold")
LOCAL = {
    "piqa": LocalTask("piqa/piqa.yaml", ("goal", "sol1", "sol2", "label"), _QUERY, _piqa),
    "winogrande": LocalTask(
        "winogrande/default.yaml",
        ("sentence", "option1", "option2", "answer"),
        ("context_options", "continuation", "gold"),
        _winogrande,
    ),
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml", ("activity_label", "ctx_a", "ctx_b", "endings", "label"), _QUERY, _hellaswag
    ),
    "arc_easy": LocalTask("arc/arc_easy.yaml", ("question", "choices", "answerKey"), _QUERY, _arc),
    "arc_challenge": LocalTask("arc/arc_challenge.yaml", ("question", "choices", "answerKey"), _QUERY, _arc),
}


def read_items(task: str, folder: Path) -> list[dict]:
    """The items of FOLDER/TASK.jsonl, with the fields that the task has on the hub.

    Raises:
        ValueError: no such task or file; a line that is no JSON, or lacks fields.
    """
    if task not in LOCAL:
        raise ValueError(f"no local copy of {task} can be read; there are {', '.join(LOCAL)}")
    known, file = LOCAL[task], folder / f"{task}.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} doesn't exist: the items of {task}, one JSON object a line")
    items = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            fields = item.keys()
            if set(known.fields) <= fields:
                items.append({name: item[name] for name in known.fields})
            elif set(known.converted) <= fields:
                items.append(known.restore(item))
            else:
                raise ValueError(f"it has {', '.join(fields) or 'nothing'}")
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{file}, line {number}: an item of {task} has the fields {', '.join(known.fields)}, or "
                f"{', '.join(known.converted)}; {error}"
            ) from error
    if not items:
        raise ValueError(f"{file} has no items in it")
    return items


def write_tasks(tasks: list[str], source: Path, folder: Path) -> None:
    """Write, for the harness to include, each task as its own with the items of `source`.

    Raises:
        ValueError: see `read_items`.
    """
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    for task in tasks:
        data = folder / f"{task}.jsonl"
        items = read_items(task, source)
        data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        definition = {
            "include": str(own / LOCAL[task].file),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(folder / "cache")},
            "training_split": None,
            "test_split": None,
        }
        # JSON is YAML.
        (folder / f"{task}.yaml").write_text(json.dumps(definition), encoding="utf-8")
