"""The command `minislice assignment`: list the assignments, or write the notebook of one."""

import argparse
from pathlib import Path

from .build import build, stars
from .catalogue import ASSIGNMENTS

HELP = "list the assignments, or write the notebook of one"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what follows `minislice assignment` to its parser."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    commands.add_parser("list", help="the assignments, with difficulty, minutes and points")
    make = commands.add_parser("build", help="write the notebook of one assignment, with answers")
    make.add_argument("name", metavar="NAME", help="of the assignment: a1 to a7, m1 to m3")
    make.add_argument("--to", required=True, type=Path, metavar="FILE", help="the notebook to write")
    make.add_argument("--release", action="store_true", help="write what students get, without answers")
    make.add_argument("--force", action="store_true", help="overwrite the file")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for; the exit status.

    Raises:
        ValueError: see `build.build`.
    """
    if arguments.what == "build":
        build(arguments.name, arguments.to, arguments.release, arguments.force)
        print(f"wrote {arguments.to}")
        return 0
    for given in ASSIGNMENTS.values():
        functions = ", ".join(question.name for question in given.questions)
        facts = f"{stars(given.difficulty)}  {given.minutes:3d} min  {given.points:2d} points"
        print(f"{given.name}  {given.title:22s} {facts}  {functions}")
    return 0
