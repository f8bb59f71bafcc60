"""`minislice families`: which models have the invariance, and why others haven't."""

import argparse
import textwrap

from ..architecture.families import FAMILIES, REFUSED
from .output import print_result


def run(arguments: argparse.Namespace) -> int:
    export = {name: family.stock_norm for name, family in sorted(FAMILIES.items())}
    reasons = {name: reason if isinstance(reason, str) else None for name, reason in export.items()}
    lines = ["Model types that can be sliced, each to be exported to transformers' own class or why not:", ""]
    for name, reason in reasons.items():
        lines.append(_entry(name, "can be exported" if reason is None else f"no export: {reason}"))
    lines += ["", "Model types that can't, since they haven't the invariance:", ""]
    lines += [_entry(name, reason) for name, reason in sorted(REFUSED.items())]
    lines += ["", "Some configurations of the first are refused too, with a reason. Of a type in neither list,"]
    lines += ["'minislice propose MODEL' says what it would take."]
    print_result(
        arguments,
        {"supported": {n: {"no_export": r} for n, r in reasons.items()}, "refused": REFUSED},
        "\n".join(lines),
    )
    return 0


def _entry(name: str, text: str) -> str:
    return textwrap.fill(f"{name:12s} {text}", 110, subsequent_indent=" " * 13)
