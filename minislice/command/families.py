"""`minislice families`: which models have the invariance, and why others haven't."""

import argparse
import textwrap

from ..architecture.families import FAMILIES, REFUSED
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    norms = {name: family.stock_norm for name, family in sorted(FAMILIES.items())}  # text says why there is no export
    supported = {name: {"no_export": norm if isinstance(norm, str) else None} for name, norm in norms.items()}
    lines = ["Model types that can be sliced, each to be exported to transformers' own class or why not:", ""]
    for name, reason in supported.items():
        lines.append(_entry(name, f"no export: {reason['no_export']}" if reason["no_export"] else "can be exported"))
    lines += ["", "Model types that can't, since they haven't the invariance:", ""]
    lines += [_entry(name, reason) for name, reason in sorted(REFUSED.items())]
    lines += ["", "Some configurations of the first are refused too, with a reason. Of a type in neither list,"]
    lines += ["'minislice propose MODEL' says what it would take."]
    print_result(arguments, {"supported": supported, "refused": REFUSED}, "\n".join(lines))


def _entry(name: str, text: str) -> str:
    return textwrap.fill(f"{name:12s} {text}", 110, subsequent_indent=" " * 13)
