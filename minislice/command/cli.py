"""The command `minislice`: its commands, and what becomes of their errors."""

import argparse
import sys
from types import ModuleType

import torch
import transformers
from safetensors import SafetensorError

from ..checks import require_seed
from ..large import processes
from . import (
    compare,
    compress,
    cost,
    demo,
    evaluate,
    export,
    families,
    generate,
    propose,
    recover,
    slice,
    verify,
    zeroshot,
)
from .inputs import device_of
from .parser import add_command, in_full, parser_for

COMMANDS = {
    "demo": demo,
    "verify": verify,
    "slice": slice,
    "compress": compress,
    "eval": evaluate,
    "zeroshot": zeroshot,
    "recover": recover,
    "generate": generate,
    "export": export,
    "cost": cost,
    "compare": compare,
    "families": families,
    "propose": propose,
}

SCRIPTS = {  # of the repository, beside their notebooks: not in an installed minislice
    "assignment": "notebooks/assignments/assignment.py",
    "grade": "notebooks/assignments/grade.py",
    "reproduce": "notebooks/reproduce/reproduce.py",
    "report": "notebooks/reproduce/report.py",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 1 where `verify` finds a failure, 2 for bad input."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in SCRIPTS:
        print(f"minislice: {argv[0]} is a script of the repository: python {SCRIPTS[argv[0]]} --help", file=sys.stderr)
        return 2
    return _run(parser_for(COMMANDS).parse_args(argv))


def run_script(script: ModuleType, argv: list[str] | None = None) -> int:
    """Run a script of the repository as a command: it has `HELP`, `arguments` and `run`, too."""
    parser = argparse.ArgumentParser(description=in_full(script.HELP))
    add_command(parser, script)
    return _run(parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its tables of what didn't fit: an error here is one line
    try:
        with processes.joined() as arguments.processes:
            if "seed" in arguments:
                require_seed(arguments.seed)
            if "device" in arguments:
                arguments.device = device_of(arguments.device)
            arguments.quiet |= arguments.processes.index > 0
            return arguments.run(arguments)
    except processes.Lost as error:
        print(f"minislice: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, MemoryError, SafetensorError, RuntimeError) as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if isinstance(error, RuntimeError) and not out_of_memory:  # a fault of minislice
            raise
        message = str(error).replace("trust_remote_code=True", "--trust-remote-code")
        print("minislice:", " ".join(message.split()), file=sys.stderr)  # one line, however many it came in
        return 2
    except KeyboardInterrupt:
        print("minislice: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
