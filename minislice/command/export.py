"""`minislice export`: a sliced model as a stock architecture."""

import argparse

from ..architecture.folder import require_free
from ..architecture.network import network
from ..storage.checkpoint import export
from .inputs import files_read, load_both
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    require_free(arguments.out, arguments.force, files_read(arguments))
    arguments.dtype = arguments.dtype or "auto"
    model, tokenizer = load_both(arguments)
    if not network(model).is_fused:
        remedy = "slice it with --adapter none --slice-head --out DIR, then export DIR"
        raise ValueError(f"{arguments.model} isn't sliced, it has a stock architecture already; {remedy}")
    export(model, arguments.out, tokenizer=tokenizer, force=arguments.force)
    print_result(arguments, {"model": arguments.model, "saved to": arguments.out})
