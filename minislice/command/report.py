"""`minislice report`: what a results file says, beside what the paper printed."""

import argparse

from ..reproduction.report import write
from .output import print_result

HELP = "write the report of a results file: Markdown, and a CSV beside it"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Add this command's own."""
    sub.add_argument("results", metavar="FILE", help="what `minislice reproduce --out FILE` wrote, finished or not")
    sub.add_argument("--out", metavar="REPORT", required=True, help="such as report.md; the CSV is report.csv")


def run(arguments: argparse.Namespace) -> int:
    written = write(arguments.results, arguments.out)
    print_result(arguments, {name: str(path) for name, path in written.items()})
    return 0
