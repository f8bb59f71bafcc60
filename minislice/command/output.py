"""What a command prints: a few lines for people, or one JSON document."""

import argparse
import json
import math


def print_result(arguments: argparse.Namespace, result: dict, text: str | None = None) -> None:
    """Print `result` as JSON where that is asked for; else `text`, or each entry in a line of its own."""
    if arguments.json:
        print(json.dumps(without_nan(result)))
    elif text is not None:
        print(text)
    else:
        width = max(map(len, result))
        for key, value in result.items():
            print(f"{key:{width}s}  {_readable(value)}")


def without_nan(value):
    """JSON has no NaN: a perplexity or an error that isn't a number is null."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value) -> str:
    if isinstance(value, list):
        return " ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in value)
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
