"""`minislice export`: a sliced model as a stock architecture."""

import argparse

from ..architecture.network import network
from ..storage.checkpoint import export
from ..storage.stock import stock_network
from .inputs import load_both, require_out, sliced_shapes
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    require_out(arguments)
    arguments.dtype = arguments.dtype or "auto"
    stock_network(network(sliced_shapes(arguments, " --adapter none --slice-head")))  # told before it is loaded
    model, tokenizer = load_both(arguments)
    export(model, arguments.out, tokenizer=tokenizer, force=arguments.force)
    print_result(arguments, {"model": arguments.model, "saved to": arguments.out})
