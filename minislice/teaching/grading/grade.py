"""Grade all submissions of an assignment: read them, mark them, write scores, comments and a table."""

import csv
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ...architecture.folder import require_file, whole_file
from ..assignments.catalogue import assignment as assignment_of
from .book import Entry, opened
from .marking import Mark, mark
from .sandbox import Limits, Sandbox
from .submission import given, submission

COLUMNS = ("student", "assignment", "question", "points", "max", "status", "message")
REMEDY = "on Linux as root, or where the kernel allows user namespaces, it can"


@dataclass(frozen=True)
class Row:
    """One question of one student's: a line of the table, its columns those of `COLUMNS`."""

    student: str
    assignment: str
    question: str
    points: float
    max: float
    status: str
    message: str


def grade(
    name: str,
    seed_file: Path,
    table: Path,
    course: Path = Path("."),
    strict: bool = False,
    limits: Limits | None = None,
    progress: bool = True,
    warn=print,
) -> list[Row]:
    """Grade an assignment of an nbgrader course. Every score is overwritten, or none.

    Args:
        name: of the assignment.
        seed_file: holds the secret from which the hidden cases are drawn.
        table: a CSV file to write, which must not exist.
        course: the folder with nbgrader_config.py.
        strict: refuse to run students' code where the system can't isolate it completely.
        limits: for each call of a student's function.
        warn: told in one line what the isolation lets through.

    Raises:
        ValueError: anything that is wrong but a single submission, which just gets no points.
    """
    assignment = assignment_of(name)
    secret = _secret(seed_file)
    with whole_file(require_file(table)) as unfinished, opened(course, assignment) as book:
        reference = submission(book.source, book.source.parent).answers
        own = given(book.source, [assignment.answer_id(question) for question in assignment.questions])
        hidden = [Path(course), Path(seed_file), Path(__file__).parents[2]]
        sandbox = Sandbox.best(limits or Limits(), [path.resolve() for path in hidden])
        if sandbox.holes:
            reason = f" ({sandbox.refused})" if sandbox.refused else ""
            warning = f"this computer can't keep a submission from: {', '.join(sandbox.holes)}{reason}; {REMEDY}"
            if strict:
                raise ValueError(warning)
            warn(warning)
        work = []
        for student, folder in book.folders.items():
            handed_in = submission(folder / f"{assignment.name}.ipynb", folder)
            work += [
                ((student, question), (assignment, question, handed_in, own, sandbox, secret, reference))
                for question in assignment.questions
            ]
        marks = dict(_marked(work, progress))
        entries, rows = [], []
        for (student, question), _ in work:
            found, most = marks[student, question.name], book.most[question.name]
            points = round(found.share * most, 2)
            comment = "\n".join("    " + line for line in found.lines)  # Markdown's code: shown as it is, HTML or not
            entries.append(Entry(student, question, points, comment))
            message = "; ".join(found.lines)
            rows.append(Row(student, assignment.name, question.name, points, most, found.status, message))
        _write(unfinished, rows)
        require_file(table)  # which may have appeared meanwhile
        book.write(entries)
    return rows


def _secret(file: Path) -> bytes:
    try:
        secret = Path(file).read_bytes().strip()
    except OSError as error:
        raise ValueError(f"the seed file {file} can't be read: {error.strerror}") from None
    if not secret:
        raise ValueError(f"the seed file {file} is empty: write something into it that nobody guesses")
    return secret


def _marked(work: list, progress: bool) -> Iterator[tuple[tuple[str, str], Mark]]:
    """The marks by student and question, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {pool.submit(mark, *what): (student, question.name) for (student, question), what in work}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="grade", disable=not progress):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(file: Path, rows: list[Row]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, column) for column in COLUMNS] for row in rows)
