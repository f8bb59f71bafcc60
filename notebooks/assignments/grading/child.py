"""The program that runs one call of a student's function, in a fresh process for each: `python -I -S child.py`.

It imports NumPy from the folder it is told, takes that folder off the path, gives up what `isolation` takes away, reads
one request from its standard input and answers on what was its standard output. Both are moved before, so that nothing
that the student's code prints gets there. Of the grader it knows two files, `wire` and `isolation`. The request has
cells, the name of a function and its arguments: no expected value, and no seed but the one of the generator that a
student's check is given.

Its messages, in this order. The student's code could have written any: they are a claim, which the grader judges.

    True                                 ready; or a text, why not
    ("call", arguments)                  any number, by a check of its candidate, each answered by
                                         ("returned", result) or ("raised", exception)
    ("returned", result, arguments after), ("raised", exception, line), ("missing",) or ("unsendable",)
"""

import builtins
import os
import re
import sys
import traceback
import types


def main(packages: str, folder: str, isolated: str, memory: str, cpu: str, wall: str) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path += [here, packages]
    import isolation
    import numpy
    import wire

    sys.path[:] = [path for path in sys.path if path not in (here, packages)]
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    try:
        if isolated == "True":
            visible = [os.path.dirname(os.path.abspath(module.__file__)) for module in (os, numpy)]
            visible += filter(os.path.isdir, [visible[1] + ".libs"])
            isolation.enter(folder, visible, (inbox, outbox), int(wall))
        else:  # where root becomes nobody, nobody may not be allowed to read the standard library
            for name in ("dataclasses", "fractions", "numpy.random", "socket", "statistics", "typing"):
                __import__(name)
        isolation.drop(int(memory), int(cpu))
    except OSError as error:
        wire.send(outbox, str(error))
        return
    wire.send(outbox, True)
    request = wire.receive(inbox)

    def candidate(*arguments):
        try:
            wire.send(outbox, ("call", arguments))
        except wire.WireError:
            raise TypeError("a candidate takes plain values") from None
        kind, answer = wire.receive(inbox)
        if kind == "raised":
            raise getattr(builtins, answer, RuntimeError)("raised by the candidate")
        return tuple(answer) if isinstance(answer, list) else answer  # a tuple, as in the student's notebook

    if request["seed"] is not None:
        request["arguments"] = {"candidate": candidate, "rng": numpy.random.default_rng(request["seed"])}
    try:
        wire.send(outbox, run(**request))
    except wire.WireError:
        wire.send(outbox, ("unsendable",))
    os._exit(0)  # at once: nothing of the student's runs any more


def run(cells: list, function: str, arguments: dict, seed: int | None) -> tuple:
    """Execute the cells, the last of which must succeed, and call the function. Returns the last message."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    last = cells[-1][0]
    for name, source in cells:
        try:
            exec(_compiled(name, source), module.__dict__)
        except BaseException as error:
            if name == last:
                return _raised(error, last)
    call = getattr(module, function, None)
    if not callable(call):
        return ("missing",)
    try:
        result = call(*arguments.values())
    except BaseException as error:
        return _raised(error, last)
    return ("returned", result, arguments) if seed is None else ("returned", None, {})


def _compiled(name: str, source: str):
    """A cell's code; Jupyter's own commands (`%matplotlib inline`, `!pip ...`, `np.sum?`) are passed over."""
    try:
        return compile(source, f"<{name}>", "exec", dont_inherit=True)
    except SyntaxError:
        plain = re.sub(r"^(\s*)([%!?].*|[\w.]+\?+ *)$", r"\1pass", source, flags=re.MULTILINE)
        return compile(plain, f"<{name}>", "exec", dont_inherit=True)


def _raised(error: BaseException, cell: str) -> tuple:
    """Which exception, and the line of the cell in which it was: the innermost one, 0 where there is none."""
    line = error.lineno or 0 if isinstance(error, SyntaxError) else 0
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == f"<{cell}>":
            line = number
    return ("raised", type(error).__name__, line)


if __name__ == "__main__":
    main(*sys.argv[1:])
