"""Zero-shot tasks made of the embedded text, for where there is no hub: a beginning, and which words go on from it.

They have the form of PIQA (two choices) and of ARC (four), and say nothing of either; the "ci" profile takes them to
run every step of tables 7 to 10.
"""

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minislice.corpus.embedded import stdlib_documents

CHOICES = {"piqa": 2, "arc_easy": 4}
BEGINNING, END = 16, 8  # words


@contextmanager
def written_tasks(tasks: Sequence[str], source: str | None) -> Iterator[str | None]:
    """The folder to take the tasks from; for "embedded" one that is made, and is gone afterwards."""
    if source != "embedded":
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            write_task(task, Path(folder))
        yield folder


def write_task(task: str, folder: Path, count: int = 100) -> None:
    """FOLDER/TASK.jsonl, the same on every run.

    Raises:
        ValueError: a task that has no such form.
    """
    if task not in CHOICES:
        raise ValueError(f"{task} can't be made of the embedded text: only {', '.join(CHOICES)} can")
    draw = random.Random(0)
    texts = [words for text in stdlib_documents("test") if len(words := text.split()) > 4 * (BEGINNING + END)]
    lines = []
    for _ in range(count):
        pieces = []
        for text in draw.sample(texts, CHOICES[task]):
            start = draw.randrange(len(text) - BEGINNING - END)
            pieces.append((text[start : start + BEGINNING], text[start + BEGINNING : start + BEGINNING + END]))
        gold = draw.randrange(len(pieces))
        choices = [" ".join(end) for _, end in pieces]
        lines.append(json.dumps({"query": " ".join(pieces[gold][0]), "choices": choices, "gold": gold}))
    (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
