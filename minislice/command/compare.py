"""`minislice compare`: ways to make a model smaller, at equal sizes, as a table and a plot."""

import argparse
from pathlib import Path

from ..architecture.folder import require_apart, whole_file
from ..beyond.compare import SIZES, compare
from ..beyond.rows import table
from ..beyond.variants import VARIANTS
from ..measuring.records import require_results
from .inputs import files_read, load_both, load_model, texts_of, token_sets
from .output import print_result
from .parser import add_calibration, add_evaluation, add_machine, add_model, add_seqlen, given, positive

HELP = "compare ways to make a model smaller, at equal numbers of parameters"
RESULTS = "results.jsonl"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    add_model(sub)
    names, sizes = ",".join(VARIANTS), ",".join(map(str, SIZES))
    sub.add_argument("--variants", type=given, default=names, help="comma-separated (default: all, %(default)s)")
    text = "fractions of the dense model's parameters that may be left, comma-separated (default: %(default)s)"
    sub.add_argument("--sizes", type=given, default=sizes, help=text)
    add_calibration(sub, 64)
    add_seqlen(sub)
    note = "; where a file is named for calibration alone, or for both, its first half calibrates and its second is "
    add_evaluation(sub, note + "measured on")
    text = "zero-shot tasks to measure as well, comma-separated, as in 'minislice zeroshot' (default: none)"
    sub.add_argument("--tasks", type=given, help=text)
    sub.add_argument("--tasks-from", metavar="DIR", help="local copies of them, TASK.jsonl")
    sub.add_argument("--limit", type=positive, help="only the first so many items of each task")
    text = f"folder for {RESULTS}, table.md and plot.png; called again, it goes on with what {RESULTS} hasn't got"
    sub.add_argument("--out", metavar="DIR", type=given, required=True, help=text)
    add_machine(sub)


def run(arguments: argparse.Namespace) -> int:
    variants = {name: _variant(name) for name in _words(arguments.variants)}
    sizes = [_size(word) for word in _words(arguments.sizes)]
    tasks = _words(arguments.tasks) if arguments.tasks else []
    out, texts = Path(arguments.out), texts_of(arguments)
    _require_own(require_apart(out, files_read(arguments)))
    model, tokenizer = load_both(arguments)
    calibration, evaluation = token_sets(arguments, texts, model, tokenizer)
    del model  # every variant loads it again
    out.mkdir(parents=True, exist_ok=True)
    rows = compare(
        lambda: load_model(arguments)[0],
        calibration,
        evaluation,
        variants=variants,
        sizes=sizes,
        out=out / RESULTS,
        name=arguments.model,
        tasks=tasks,
        tokenizer=tokenizer,
        tasks_from=arguments.tasks_from,
        limit=arguments.limit,
        say=(lambda line: None) if arguments.quiet or arguments.json else (lambda line: print(line, flush=True)),
    )
    text = table(rows)
    with whole_file(out / "table.md") as new:
        new.write_text(text + "\n", encoding="utf-8")
    _draw(rows, out / "plot.png")
    result = {
        "model": arguments.model,
        "calibration": texts.describe("calibration", calibration),
        "evaluation": texts.describe("test", evaluation),
        "rows": rows,
        "saved to": arguments.out,
    }
    notes = [f"calibration: {result['calibration']}; evaluation: {result['evaluation']}", f"saved to {out}"]
    print_result(arguments, result, "\n".join(["", text, "", *notes]))
    return 0


def _draw(rows: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt  # takes a second, which no other command waits for

    from ..teaching import plots

    with plt.rc_context():
        plots.use_style()
        figure, ax = plt.subplots()
        plots.by_parameters(rows, ax=ax)
        with whole_file(path) as new:
            figure.savefig(new, format="png", dpi=150)
        plt.close(figure)


def _words(text: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise ValueError(f"name at least one, with commas between, got {text!r}")
    return words


def _variant(name: str):
    if name not in VARIANTS:
        raise ValueError(f"--variants takes {', '.join(VARIANTS)}, comma-separated, got {name!r}")
    return VARIANTS[name]


def _size(word: str) -> float:
    try:
        size = float(word)
    except ValueError:
        size = 0.0
    if not 0 < size <= 1:
        raise ValueError(f"--sizes takes fractions in (0, 1], comma-separated, got {word!r}")
    return size


def _require_own(out: Path) -> None:
    """Raise a ValueError for a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and not (out / RESULTS).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} exists, isn't empty and has no {RESULTS}; give another folder with --out")
    if out.is_dir():
        require_results(out / RESULTS)
