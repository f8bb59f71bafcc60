"""`minislice compare`: ways to make a model smaller, at equal sizes, as a table and a plot."""

import argparse
from pathlib import Path

from ..architecture.folder import require_apart, whole_file
from ..beyond.compare import SIZES, compare
from ..beyond.rows import table
from ..beyond.variants import VARIANTS
from ..checks import require_choice, require_number
from ..corpus.documents import evaluation_windows
from ..corpus.text import is_one_file, require_source
from ..measuring.records import require_results
from ..teaching import plots
from .inputs import files_read, load_both, load_model, texts_of, token_sets
from .output import picture, print_result

RESULTS = "results.jsonl"


def run(arguments: argparse.Namespace) -> None:
    for name in arguments.variants or ():
        require_choice("--variants", name, VARIANTS)
    for size in arguments.sizes or ():
        require_number("--sizes", size, above=0, most=1)
    out, texts = Path(arguments.out), texts_of(arguments)
    if arguments.second_evaluation:
        require_source(arguments.second_evaluation)
        if is_one_file(texts.calibration, arguments.second_evaluation):
            raise ValueError("the second text calibrates, too; give --second-evaluation a text that nothing has seen")
    _require_own(require_apart(out, files_read(arguments)))
    model, tokenizer = load_both(arguments)
    calibration, evaluation = token_sets(arguments, texts, model, tokenizer)
    asked = {"tokenizer": tokenizer, "seqlen": evaluation.shape[1], "samples": arguments.eval_samples}
    evaluation, second = (
        text and evaluation_windows(text, second_half=is_one_file(texts.calibration, text), **asked)
        for text in (texts.evaluation, arguments.second_evaluation)
    )
    del model  # every variant loads it again
    out.mkdir(parents=True, exist_ok=True)
    rows = compare(
        lambda: load_model(arguments)[0],
        calibration,
        evaluation,
        second=second,
        variants={name: VARIANTS[name] for name in arguments.variants or VARIANTS},
        sizes=arguments.sizes or SIZES,
        out=out / RESULTS,
        name=arguments.model,
        tasks=arguments.tasks or (),
        tokenizer=tokenizer,
        tasks_from=arguments.tasks_from,
        limit=arguments.limit,
        say=(lambda line: None) if arguments.quiet or arguments.json else (lambda line: print(line, flush=True)),
    )
    text = table(rows)
    with whole_file(out / "table.md") as new:
        new.write_text(text + "\n", encoding="utf-8")
    with picture(out / "plot.png"):
        plots.by_parameters(rows)
    result = {
        "model": arguments.model,
        "calibration": texts.describe("calibration", calibration),
        "evaluation": f"{texts.evaluation}, {evaluation}",
        "second evaluation": second and f"{arguments.second_evaluation}, {second}",
        "rows": rows,
        "saved to": arguments.out,
    }
    notes = [f"{name}: {result[name]}" for name in ("calibration", "evaluation", "second evaluation") if result[name]]
    notes.append(f"saved to {out}")
    print_result(arguments, result, "\n".join(["", text, "", *notes]))


def _require_own(out: Path) -> None:
    """Raise a ValueError for a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder with --out")
    if out.is_dir() and not (out / RESULTS).is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} exists, isn't empty and has no {RESULTS}; give another folder with --out")
    if out.is_dir():
        require_results(out / RESULTS)
