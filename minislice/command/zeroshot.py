"""`minislice zeroshot`: a model's accuracy on zero-shot tasks."""

import argparse
import math

from ..measuring.zero_shot import TASKS, zero_shot
from .inputs import load_both
from .output import print_result
from .parser import add_machine, add_model, positive

HELP = "measure a model's accuracy on zero-shot tasks, with the LM Evaluation Harness"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    add_model(sub)
    text = f"names of the harness's tasks, with commas between (default: the paper's, {','.join(TASKS)})"
    sub.add_argument("--tasks", default=",".join(TASKS), help=text)
    text = "a folder with TASK.jsonl for each task, its items one a line; without it they come from the hub"
    sub.add_argument("--tasks-from", metavar="DIR", help=text)
    sub.add_argument("--limit", type=positive, help="only the first so many items of each task")
    sub.add_argument("--batch-size", type=positive, default=8, help="choices computed together (default: 8)")
    add_machine(sub)


def run(arguments: argparse.Namespace) -> int:
    model, tokenizer = load_both(arguments)
    measured = zero_shot(
        model,
        tokenizer,
        [task.strip() for task in arguments.tasks.split(",")],
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
