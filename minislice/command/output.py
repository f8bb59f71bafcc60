"""What a command prints, a few lines for people or one JSON document, and the picture that it draws."""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from ..architecture.folder import whole_file
from ..measuring.tables import table


def print_result(arguments: argparse.Namespace, result: dict | list, text: str | None = None, note: str = "") -> None:
    """Print `result` as JSON where that is asked for; else `text`, or each entry in a line of its own, and `note`."""
    if arguments.json:
        print(json.dumps(_without_nan(result)))
    elif text is not None:
        print(text)
    else:
        lines = table([[name, _readable(value)] for name, value in result.items()], words=2)
        print(f"{lines}\n{note}".rstrip())


@contextmanager
def picture(path: Path) -> Iterator[None]:
    """What is drawn in the block, in the notebooks' style, as a PNG file."""
    import matplotlib.pyplot as plt  # takes half a second, which other commands don't wait for

    from ..teaching import plots

    with plt.rc_context():
        plots.use_style()
        yield
        with whole_file(path) as new:
            plt.savefig(new, format="png", dpi=150)
        plt.close()


def _without_nan(value):
    """JSON has neither NaN nor infinity: an error or a perplexity that isn't a finite number is null."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value) -> str:
    if isinstance(value, list):
        return _in_short(value) or "none"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _in_short(values: list[int] | list[float]) -> str:
    """Runs of one number as "432 x 60, 576"; numbers that differ more by the least and the greatest of them."""
    texts = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]
    runs = [(text, len(list(run))) for text, run in groupby(texts)]
    if len(runs) <= 4:
        return ", ".join(text if count == 1 else f"{text} x {count}" for text, count in runs)
    least, greatest = texts[values.index(min(values))], texts[values.index(max(values))]
    return f"{least} to {greatest}, {len(values)} in all"
