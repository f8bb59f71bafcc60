"""Grade the submissions of an assignment in an nbgrader course: `python grade.py a3 --seed-file secret --csv a3.csv`.

Reads the submissions, marks them, writes scores and comments into the gradebook, and a table.
"""

import argparse
import csv
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from grading.book import Entry, opened
from grading.marking import Mark, mark
from grading.sandbox import Limits, Sandbox
from grading.submission import given, submission
from tqdm.auto import tqdm

import minislice
from minislice.architecture.folder import require_file, whole_file
from minislice.teaching.assignments.catalogue import assignment as assignment_of

COLUMNS = ("student", "assignment", "question", "points", "max", "status", "message")
REMEDY = "on Linux as root, or where the kernel allows user namespaces, it can"


@dataclasses.dataclass(frozen=True)
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
        hidden = [Path(course), Path(seed_file), Path(__file__).parent, Path(minislice.__file__).parent]
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


def main(argv: list[str] | None = None) -> int:
    """Grade, and print each student's points. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Grade the submissions of an assignment in an nbgrader course.")
    parser.add_argument("name", metavar="NAME", help="of the assignment: a1 to a7, m1 to m3")
    parser.add_argument("--seed-file", required=True, type=Path, metavar="FILE", help="the secret of the hidden cases")
    parser.add_argument(
        "--csv", required=True, type=Path, metavar="FILE", help="a table to write, a line for each question"
    )
    parser.add_argument(
        "--course", default=Path("."), type=Path, metavar="DIR", help="nbgrader's folder (default: here)"
    )
    parser.add_argument("--strict", action="store_true", help="stop where submissions can't be isolated completely")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    try:
        rows = grade(
            arguments.name,
            arguments.seed_file,
            arguments.csv,
            arguments.course,
            arguments.strict,
            progress=not arguments.quiet,
            warn=lambda warning: print(f"grade.py: {warning}", file=sys.stderr),
        )
    except (ValueError, OSError) as error:
        print("grade.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return 0
    for student in dict.fromkeys(row.student for row in rows):
        own = [row for row in rows if row.student == student]
        wrong = ", ".join(f"{row.question} {row.status}" for row in own if row.status != "passed")
        print(f"{student:20s} {sum(row.points for row in own):5g} of {sum(row.max for row in own):g}  {wrong}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
