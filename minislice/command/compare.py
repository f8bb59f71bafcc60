"""`minislice compare`: ways to make a model smaller, at equal sizes, as a table and a plot."""

import argparse
from functools import partial

from ..architecture.folder import place_for, require_apart, whole_file
from ..beyond.compare import SIZES, compare, table
from ..beyond.variants import VARIANTS
from ..checks import require_choice, require_number
from ..corpus.documents import evaluation_windows
from ..corpus.text import is_one_file, load_text
from ..measuring.zero_shot import require_tasks
from ..teaching import plots
from .inputs import files_read, load_model, prepared
from .output import picture, print_result

RESULTS = "results.jsonl"


def run(arguments: argparse.Namespace) -> None:
    for name in arguments.variants or ():
        require_choice("--variants", name, VARIANTS)
    for size in arguments.sizes or ():
        require_number("--sizes", size, above=0, most=1)
    if not arguments.tasks and (arguments.tasks_from or arguments.limit):
        raise ValueError("--tasks-from and --limit are of zero-shot tasks: give --tasks too, or leave them out")
    tasks = require_tasks(arguments.tasks or (), arguments.tasks_from)
    second_text = arguments.second_evaluation
    if second_text:
        load_text(second_text, "test")
    if is_one_file(arguments.calibration, second_text):
        raise ValueError("the second text calibrates, too; give --second-evaluation a text that nothing has seen")
    out = require_apart(arguments.out, files_read(arguments))
    if not out.is_dir():
        place_for(out)
    elif not (out / RESULTS).is_file() and not all(path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} isn't empty and has no {RESULTS}; give another folder with --out")
    tokenizer, calibration, windows, described = prepared(arguments)[1:]  # every variant loads the model again
    seqlen, samples = windows.shape[1], arguments.eval_samples
    evaluation, second = (
        text and evaluation_windows(text, tokenizer, seqlen, samples, is_one_file(arguments.calibration, text))
        for text in (arguments.evaluation, second_text)
    )
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
        tasks=tasks,
        tokenizer=tokenizer,
        tasks_from=arguments.tasks_from,
        limit=arguments.limit,
        say=(lambda line: None) if arguments.quiet or arguments.json else partial(print, flush=True),
    )
    text = table(rows)
    with whole_file(out / "table.md") as new:
        new.write_text(text + "\n", encoding="utf-8")
    with picture(out / "plot.png"):
        plots.by_parameters(rows)
    facts = {"calibration": described["calibration"], "evaluation": f"{arguments.evaluation}, {evaluation}"}
    facts["second evaluation"] = second and f"{second_text}, {second}"
    facts["saved to"] = arguments.out
    lines = [f"{name}: {value}" for name, value in facts.items() if value]
    print_result(arguments, {"model": arguments.model, **facts, "rows": rows}, "\n".join(["", text, "", *lines]))
