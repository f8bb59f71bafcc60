"""Grade the submissions of an assignment in an nbgrader course: `python grade.py a3 --seed-file secret --csv a3.csv`.

Reads the submissions, marks them, writes scores and comments into the gradebook, and a table.
"""

import argparse
import csv
import hashlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from grading.book import opened
from grading.sandbox import Sandbox
from grading.submission import source, submitted
from tqdm.contrib.concurrent import thread_map

from minislice.architecture.folder import require_file, whole_file
from minislice.command.cli import run_script
from minislice.command.output import print_result
from minislice.teaching.assignments import assignment as assignment_of
from minislice.teaching.assignments.exercise import Assignment, Failure, Mark, MutationQuestion, Question

HELP = "grade the submissions of an assignment in an nbgrader course"
CONSEQUENCE = "they can read files and use the network; on Linux as root, or with user namespaces, they can't"


def grade(
    name: str,
    seed_file: Path,
    table: Path,
    course: Path = Path("."),
    strict: bool = False,
    sandbox: Sandbox | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Grade an assignment of an nbgrader course: every score is overwritten, or none. Returns the table's rows.

    A ValueError says what is wrong, unless it is a single submission, which just gets no points.

    Args:
        seed_file: holds the secret from which the hidden cases are drawn.
        table: a CSV file to write, which must not exist.
        course: the folder with nbgrader_config.py.
        strict: refuse to run students' code where the system can't isolate it.
    """
    assignment, secret = assignment_of(name), Path(seed_file).read_bytes().strip()
    if not secret:
        raise ValueError(f"the seed file {seed_file} is empty: write something into it that nobody guesses")
    with whole_file(require_file(table)) as unfinished, opened(course, assignment) as book:
        given, reference = source(book.source, assignment)
        sandbox = (sandbox or Sandbox()).best()
        if not sandbox.isolated:
            warning = f"this computer can't isolate submissions ({sandbox.refused}): {CONSEQUENCE}"
            if strict:
                raise ValueError(warning)
            print(f"minislice: {warning}", file=sys.stderr)
        handed_in = {student: submitted(file, reference) for student, file in book.files.items()}
        work = list(itertools.product(handed_in, assignment.questions))

        def marked(student: str, question: Question | MutationQuestion) -> Mark:
            return mark(assignment, question, handed_in[student], given, reference, sandbox, secret)

        look = {"max_workers": os.cpu_count(), "desc": "grade", "disable": not progress}
        marks = thread_map(marked, *zip(*work, strict=True), **look)
        rows = []
        for (student, question), found in zip(work, marks, strict=True):
            most, lines = book.most[question.name], found.lines(values=False)
            points = round(found.share * most, 2)
            book.write(student, question, points, lines)
            row = {"student": student, "assignment": assignment.name, "question": question.name, "points": points}
            rows.append(row | {"max": most, "status": found.status, "message": "; ".join(lines)})
        with open(unfinished, "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return rows


def mark(
    assignment: Assignment,
    question: Question | MutationQuestion,
    answers: Mapping[str, str | Failure],
    given: Sequence[tuple[str, str]],
    reference: Mapping[str, str],
    sandbox: Sandbox,
    secret: bytes,
) -> Mark:
    """Mark one question of a submission.

    A function may call those of the questions before it. If it fails after the student's answers to them, it is tried
    again after right ones: a slip in one function costs its own points alone.

    Args:
        answers: the student's, by grade_id.
        given: the source's own cells, which are executed before the student's.
        reference: right answers by grade_id.
        secret: what the hidden cases are drawn from.
    """
    name = assignment.answer_id(question)
    if isinstance(answers[name], Failure):
        return Mark(0.0, "", answers[name])
    names = [assignment.answer_id(other) for other in assignment.questions]
    earlier = names[: names.index(name)]
    student = [(other, answers[other]) for other in earlier if isinstance(answers[other], str)]
    right = [(f"right {other}", reference[other]) for other in earlier]
    drawn = [*hashlib.sha256(b"\0".join([secret, name.encode()])).digest()]
    marks = []
    for before in (student, [*student, *right], right) if earlier else ([],):
        call = partial(sandbox.call, [*given, *before, (name, answers[name])], question.name)
        try:
            marks.append(question.mark(call, np.random.default_rng(drawn)))
        except OSError:  # of this computer
            raise
        except Exception as error:  # a result that was made to break the comparison costs its own question alone
            marks.append(Mark(0.0, f"the result can't be examined ({type(error).__name__})", Failure("", "")))
        if marks[-1].share == 1:
            break
    return max(marks, key=lambda mark: mark.share)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the assignment: a1 to a9, m1 to m3, c1")
    parser.add_argument("--seed-file", required=True, type=Path, metavar="FILE", help="the secret of the hidden cases")
    parser.add_argument("--csv", required=True, type=Path, metavar="FILE", help="a table to write, a line a question")
    parser.add_argument("--course", default=".", type=Path, metavar="DIR", help="nbgrader's folder (default: here)")
    parser.add_argument("--strict", action="store_true", help="stop where submissions can't be isolated completely")


def run(options: argparse.Namespace) -> None:
    progress = not options.quiet
    rows = grade(options.name, options.seed_file, options.csv, options.course, options.strict, progress=progress)
    lines = []
    for student, answers in itertools.groupby(rows, lambda row: row["student"]):
        answers = list(answers)
        points, most = (sum(row[column] for row in answers) for column in ("points", "max"))
        wrong = ", ".join(f"{row['question']} {row['status']}" for row in answers if row["status"] != "passed")
        lines.append(f"{student:20s} {points:5g} of {most:g}  {wrong}".rstrip())
    print_result(options, rows, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_script(sys.modules[__name__]))
