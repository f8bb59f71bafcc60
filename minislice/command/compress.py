"""`minislice compress`: reach a share of a model's size by deleting what costs least, and measure what it costs."""

import argparse
from functools import partial

from ..beyond.budget import compress, neurons_for, plan_compression
from ..beyond.neurons import delete_neurons
from ..checks import require_number
from ..measuring.cost import parameters
from .inputs import before_and_after, prepared, require_out
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    require_number("--size", arguments.size, above=0, below=1)
    require_out(arguments)
    ready = prepared(arguments)
    model, calibration = ready.model, ready.calibration
    settings = {"batch_size": arguments.batch_size, "progress": not arguments.quiet}
    solving = {"reconstruct": arguments.reconstruct, "fisher": arguments.fisher, **settings}
    if arguments.stock:
        fraction = neurons_for(model, arguments.size)
        planned = {"neurons deleted in each MLP": fraction}
        solving["repair"] = arguments.reconstruct
        act = partial(delete_neurons, model, calibration, neurons=fraction, **solving)
    else:
        choices = {"drop": not arguments.keep_blocks} | ({"widths": (1.0,)} if arguments.keep_width else {})
        plan = plan_compression(model, calibration, size=arguments.size, **choices, **settings)
        if not arguments.json:
            print(f"{plan}\n", flush=True)
        planned = {"expected cost": plan.cost, **{name: plan.options[name] for name in ("width", "neurons", "drop")}}
        act = partial(compress, model, calibration, plan=plan, **solving)
    if arguments.plan_only:
        return print_result(arguments, {"model": arguments.model, "dense parameters": parameters(model), **planned})
    result = before_and_after(arguments, "compressed", act, ready) | planned
    print_result(arguments, result | ({"saved to": arguments.out} if arguments.out else {}))
