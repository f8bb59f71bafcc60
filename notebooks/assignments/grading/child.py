"""The program that runs one call of a student's function, in a fresh process for each: `python -I -S child.py`.

It imports NumPy from the folder it is told, takes that folder off the path, gives up what `isolation` takes away, reads
one request from its standard input and answers on what was its standard output. Both descriptors are moved before, so
that nothing that the student's code prints gets there. Of the grader it knows two files: values as bytes, and the
isolation. The request has cells, the name of a function and its arguments: no expected value, and no seed but that of
a generator which a student's check is given.

Its messages, in this order. The student's code could have written any: they are a claim, which the grader judges.

    True                                 ready; or a text, why not
    ("executed",)                        the cells are, the function comes next
    ("call", arguments)                  any number, by a check of its candidate, each answered by
                                         ("returned", result) or ("raised", exception)
    ("returned", result, arguments after), ("raised", exception, line), ("missing",) or ("unsendable", why)
"""

import builtins
import os
import re
import sys
import types


def main(packages: str, folder: str, isolated: str, memory: str, cpu: str, wall: str) -> None:
    """Answer one request."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path += [here, packages]
    import isolation
    import numpy
    import wire

    sys.path[:] = [path for path in sys.path if path not in (here, packages)]
    inbox, outbox = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    try:
        if isolated == "True":
            isolation.enter(folder, _visible(numpy), (inbox, outbox), int(wall))
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
        except wire.WireError as error:
            raise TypeError(f"a candidate takes plain values, not {error}") from None
        kind, *answer = wire.receive(inbox)
        if kind == "raised":
            raise getattr(builtins, answer[0], RuntimeError)("raised by the candidate")
        return answer[0]

    try:
        wire.send(outbox, run(request, lambda: wire.send(outbox, ("executed",)), candidate))
    except wire.WireError as error:
        wire.send(outbox, ("unsendable", str(error)))
    os._exit(0)  # at once: nothing of the student's runs any more


def run(request: dict, executed, candidate) -> tuple:
    """Execute the cells, the last of which must succeed, and call the function. Returns the last message."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    cells = request["cells"]
    for name, source in cells:
        try:
            exec(_compiled(name, source), module.__dict__)
        except BaseException as error:
            if name == cells[-1][0]:
                return _raised(error, name)
    executed()
    function = getattr(module, request["function"], None)
    if not callable(function):
        return ("missing",)
    arguments = request["arguments"]
    check = request["seed"] is not None
    if check:
        import numpy

        arguments = [candidate, numpy.random.default_rng(request["seed"])]
    try:
        result = function(*arguments)
    except BaseException as error:
        return _raised(error, cells[-1][0])
    return ("returned", None, []) if check else ("returned", result, arguments)


def _compiled(name: str, source: str):
    """A cell's code; Jupyter's own commands (`%matplotlib inline`, `!pip ...`) are passed over."""
    try:
        return compile(source, f"<{name}>", "exec", dont_inherit=True)
    except SyntaxError:
        plain = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
        return compile(plain, f"<{name}>", "exec", dont_inherit=True)


def _raised(error: BaseException, cell: str) -> tuple:
    """Which exception, and the line of the cell in which it was: the innermost one, 0 where there is none."""
    line = error.lineno or 0 if isinstance(error, SyntaxError) else 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == f"<{cell}>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return ("raised", type(error).__name__, line)


def _visible(numpy) -> list[str]:
    """The folders that a NumPy program reads while it runs."""
    package = os.path.dirname(os.path.abspath(numpy.__file__))
    standard = os.path.dirname(os.path.abspath(os.__file__))
    folders = [standard, package, package + ".libs"]
    return [folder for folder in folders if os.path.isdir(folder)]


if __name__ == "__main__":
    main(*sys.argv[1:])
