"""The command `minislice`: runs what the command line names, and says errors in one line."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from .parser import PRINTED, add_options, idle, in_full, make_parser


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0; 1 if `verify` or `propose` finds that the model doesn't fit, or if
    another process was lost; 2 for bad input; 130 if interrupted; 141 if nobody reads the output any more.
    """
    arguments = make_parser().parse_args(argv)
    if told := idle(arguments):
        return _refused(told)
    try:
        run = import_module(f".{arguments.command}", __package__).run  # after --help, for torch takes seconds
    except KeyboardInterrupt:
        return _refused("interrupted", status=130)
    return _run(run, arguments)


def run_script(script: ModuleType, argv: list[str] | None = None) -> int:
    """Run a script of the repository as a command: it has `HELP`, `arguments` and `run`."""
    parser = argparse.ArgumentParser(description=in_full(script.HELP))
    script.arguments(parser)
    add_options(parser, PRINTED)
    return _run(script.run, parser.parse_args(argv))


def _run(run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace) -> int:
    """Call `run`, which returns its exit status, or None for 0."""
    import torch
    import transformers
    from safetensors import SafetensorError

    from ..large import processes
    from .inputs import device_of

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its tables of what didn't fit: an error here is one line
    try:
        with warnings.catch_warnings(), processes.joined() as arguments.processes:
            warnings.showwarning = lambda message, *_, **__: _refused(f"warning: {message}")
            if arguments.processes.count > 1 and getattr(arguments, "command", None) != "slice":
                raise ValueError("only 'minislice slice' shares its work among processes; leave torchrun out")
            if "device" in arguments:
                arguments.device = device_of(arguments)
            arguments.quiet |= arguments.processes.index > 0
            status = run(arguments) or 0
            print(end="", flush=True)
            return status
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except processes.Lost as error:
        return _refused(error, status=1)
    except (ValueError, OSError, MemoryError, SafetensorError, RuntimeError) as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if isinstance(error, RuntimeError) and not out_of_memory:  # a fault of minislice
            raise
        message = str(error) or type(error).__name__  # Python's own MemoryError says nothing
        return _refused(_as_given(message, arguments))
    except KeyboardInterrupt:
        return _refused("interrupted", status=130)


def _as_given(message: str, arguments: argparse.Namespace) -> str:
    """The message with options as the command line has them: "--head tied" in place of Python's "head='tied'"."""
    given = str(list(vars(arguments).values()))

    def option(found: re.Match) -> str:
        name, _, value = found.groups()
        is_option = name in arguments and (value or "_" in name)  # a word such as "width" may be a noun
        if not is_option or found[0] in given:  # a folder may be called "slicing=0.25"
            return found[0]
        return f"--{name.replace('_', '-')}" + ("" if value in (None, "True") else f" {value}")

    return re.sub(r"""(?<![\w./'-])(\w+)(?:=(['"]?)([\w.-]*\w)\2)?(?![\w/'=]|\.\w)""", option, message)


def _refused(message: object, status: int = 2) -> int:
    """Say why in one line, however many the message has."""
    print("minislice:", " ".join(str(message).split()), file=sys.stderr)
    return status
