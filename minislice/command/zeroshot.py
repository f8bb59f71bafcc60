"""`minislice zeroshot`: a model's accuracy on zero-shot tasks."""

import argparse
import math

from ..measuring.zero_shot import TASKS, zero_shot
from .inputs import load_both
from .output import print_result


def run(arguments: argparse.Namespace) -> int:
    model, tokenizer = load_both(arguments)
    measured = zero_shot(
        model,
        tokenizer,
        arguments.tasks or TASKS,
        limit=arguments.limit,
        tasks_from=arguments.tasks_from,
        batch_size=arguments.batch_size,
        progress=not arguments.quiet,
    )
    tasks = {
        score.task: {
            "metric": score.metric,
            "accuracy": score.accuracy,
            "standard error": score.stderr,
            "items": score.count,
        }
        for score in measured.scores
    }
    mean = {"accuracy": measured.mean, "standard error": measured.stderr}
    result = {"model": arguments.model, "tasks": tasks, "mean": mean, "versions": measured.versions}
    lines = [
        f"{name:14s}  {row['accuracy']:6.2f} {_error(row['standard error'])}  {row['metric']}, {row['items']} items"
        for name, row in tasks.items()
    ]
    lines.append(f"{'mean':14s}  {measured.mean:6.2f} {_error(measured.stderr)}")
    print_result(arguments, result, "\n".join(lines))
    return 0


def _error(value: float) -> str:
    return " " * 7 if math.isnan(value) else f"± {value:5.2f}"
