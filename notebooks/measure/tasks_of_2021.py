"""Rewrites zero-shot items from the LM Evaluation Harness's form of 2021 to today's form on the hub.

    python notebooks/measure/tasks_of_2021.py OLD NEW

Several published copies have the old form: `query`, `choices` and `gold`, the index of the right choice; for
WinoGrande `context_options`, `continuation` and `gold`. NEW/TASK.jsonl is written for those of the
paper's tasks that OLD has.
"""

import argparse
import json
from pathlib import Path

from minislice.measuring.local_tasks import LOCAL


def rewritten(task: str, item: dict) -> dict:
    """One item; the harness asks the same of it."""
    gold = item["gold"]
    if task == "winogrande":  # each option has what stands before the gap, so the sentence begins at the gap
        first, second = item["context_options"]
        return {"sentence": f"_ {item['continuation']}", "option1": first, "option2": second, "answer": str(gold + 1)}
    query, choices = item["query"], item["choices"]
    if task == "hellaswag":
        activity, context = query.split(": ", 1)
        return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": choices, "label": str(gold)}
    question = query.removeprefix("Question: ").removesuffix("Answer:").removesuffix("\n")  # the harness writes both
    if task == "piqa":
        return {"goal": question, "sol1": choices[0], "sol2": choices[1], "label": gold}
    labels = [str(number) for number in range(len(choices))]
    return {"question": question, "choices": {"text": choices, "label": labels}, "answerKey": str(gold)}


def rewrite(old: Path, new: Path) -> None:
    new.mkdir(parents=True, exist_ok=True)
    for task in LOCAL:
        if (old / f"{task}.jsonl").is_file():
            lines = (old / f"{task}.jsonl").read_text(encoding="utf-8-sig").split("\n")
            items = [rewritten(task, json.loads(line)) for line in lines if line.strip()]
            (new / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="folder with TASK.jsonl in the old form")
    parser.add_argument("new", type=Path, help="folder to write to")
    rewrite(**vars(parser.parse_args()))
