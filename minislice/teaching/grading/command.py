"""The command `minislice grade`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from .grade import grade

HELP = "grade the submissions of an assignment in an nbgrader course"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add what follows `minislice grade` to its parser."""
    sub.add_argument("name", metavar="NAME", help="of the assignment: a1 to a7, m1 to m3")
    sub.add_argument("--seed-file", required=True, type=Path, metavar="FILE", help="the secret of the hidden cases")
    sub.add_argument(
        "--csv", required=True, type=Path, metavar="FILE", help="a table to write, a line for each question"
    )
    sub.add_argument("--course", default=Path("."), type=Path, metavar="DIR", help="nbgrader's folder (default: here)")
    sub.add_argument("--strict", action="store_true", help="stop where submissions can't be isolated completely")


def run(arguments: argparse.Namespace) -> int:
    """Grade, and print each student's points.

    Raises:
        ValueError: see `grade.grade`.
    """
    rows = grade(
        arguments.name,
        arguments.seed_file,
        arguments.csv,
        arguments.course,
        arguments.strict,
        progress=not arguments.quiet,
        warn=lambda warning: print(f"minislice: {warning}", file=sys.stderr),
    )
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return 0
    for student in dict.fromkeys(row.student for row in rows):
        own = [row for row in rows if row.student == student]
        wrong = ", ".join(f"{row.question} {row.status}" for row in own if row.status != "passed")
        print(f"{student:20s} {sum(row.points for row in own):5g} of {sum(row.max for row in own):g}  {wrong}".rstrip())
    print(f"wrote {arguments.csv} and the gradebook; next: nbgrader generate_feedback {arguments.name} --force")
    return 0
