"""`minislice zeroshot`: a model's accuracy on zero-shot tasks."""

import argparse

from ..measuring.tables import table
from ..measuring.zero_shot import TASKS, require_tasks, zero_shot
from .inputs import load_both
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    names = require_tasks(arguments.tasks or TASKS, arguments.tasks_from)
    model, tokenizer = load_both(arguments)
    settings = {name: getattr(arguments, name) for name in ("limit", "tasks_from", "batch_size")}
    measured = zero_shot(model, tokenizer, names, progress=not arguments.quiet, **settings)
    columns = {"metric": "metric", "accuracy": "accuracy", "standard error": "stderr", "items": "count"}
    tasks = {score.task: {name: getattr(score, field) for name, field in columns.items()} for score in measured.scores}
    mean = {"accuracy": measured.mean, "standard error": measured.stderr}
    result = {"model": arguments.model, "tasks": tasks, "mean": mean, "versions": measured.versions}
    lines = [["task", *columns]]
    for name, row in {**tasks, "mean": mean}.items():
        numbers = [f"{row[number]:.2f}".replace("nan", "-") for number in ("accuracy", "standard error")]
        lines.append([name, row.get("metric", ""), *numbers, str(row.get("items", ""))])
    print_result(arguments, result, table(lines, words=2))
