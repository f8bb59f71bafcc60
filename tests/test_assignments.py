"""The assignments: right answers get full marks, wrong ones are told what is wrong, releases give nothing away."""

import ast
import importlib
import inspect
import re
import runpy
import sys
from pathlib import Path

import assignment as builder
import jaxtyping
import numpy as np
import other_answers
import pytest
from grading import wire
from wrong_answers import WRONG

from minislice.command.cli import run_script
from minislice.teaching.assignments import catalogue, exercise, feedback
from minislice.teaching.assignments.catalogue import ASSIGNMENTS
from minislice.teaching.assignments.forms import Array, Gone, Maybe, Misfit, Number, conform, same
from minislice.teaching.assignments.judging import Places

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks" / "assignments"
README = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
QUESTIONS = {  # the capstone's is in test_capstone.py
    f"{given.name}.{question.name}": question
    for given in ASSIGNMENTS.values()
    for question in given.questions
    if given.name != "c1"
}
FUNCTIONS = {key: question for key, question in QUESTIONS.items() if isinstance(question, exercise.Question)}
MUTATIONS = {key: question for key, question in QUESTIONS.items() if key not in FUNCTIONS}


def solution(key):
    name, function = key.split(".")
    return runpy.run_path(builder.ANSWERS / f"{name}.py")[function]


def told(key, function, capsys, **options):
    """Whether `check` is content, and what it prints."""
    name, function.__name__ = key.split(".")
    tool = getattr(importlib.import_module(f"minislice.teaching.assignments.{name}"), ASSIGNMENTS[name].tool)
    return tool(function, **options), capsys.readouterr().out


@pytest.fixture
def unchecked():
    """Without the check of annotations, which takes many times as long as what is called."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def first_failure(key, function, seed):
    cases = FUNCTIONS[key].cases(np.random.default_rng(seed))
    return next(filter(None, (feedback.try_case(FUNCTIONS[key], function, case) for case in cases)), None)


# Answers


@pytest.mark.parametrize("key", QUESTIONS)
def test_right_answers_of_two_styles_get_full_marks(key, capsys, unchecked):
    for function in (solution(key), getattr(other_answers, key.replace(".", "_"))):
        content, printed = told(key, function, capsys)
        assert content and "FAILED" not in printed, printed
        for seed in range(25 if key in FUNCTIONS else 0):
            assert first_failure(key, function, seed) is None, f"{function}, seed {seed}"


@pytest.mark.parametrize(("key", "wrong"), [(key, wrong) for key in QUESTIONS for wrong in WRONG[key]])
def test_a_wrong_answer_is_told_where_and_why(key, wrong, capsys, unchecked, tmp_path):
    """With other random numbers it fails, too; and without values, as the grader says it, no number is told."""
    old, new, *pieces = wrong
    name, asked = key.split(".")
    answer, file = builder.function_source(name, asked), tmp_path / "answer.py"
    assert old in answer
    others = (builder.ANSWERS / f"{name}.py").read_text("utf-8")
    file.write_text(others.replace(answer, answer.replace(old, new)))
    function = runpy.run_path(file)[asked]
    content, printed = told(key, function, capsys)
    assert not content and "Traceback" not in printed
    assert not [piece for piece in pieces if piece not in printed], printed
    for seed in range(1, 11 if key in FUNCTIONS else 0):
        failure = first_failure(key, function, seed)
        assert failure and not re.search(r"\d\.\d{3}", "\n".join(failure.lines(values=False)))


def filled(form, value):
    """A result of this form, full of one value."""
    if isinstance(form, Array):
        return np.full([2 if isinstance(size, str) else size for size in form.shape], value)
    if isinstance(form, Number):
        return value if form.kind is float or not np.isfinite(value) else int(value)
    if isinstance(form, dict):
        return {name: filled(part, value) for name, part in form.items()}
    return None if form is None or isinstance(form, (Maybe, Gone)) else type(form)(filled(part, value) for part in form)


@pytest.mark.parametrize("key", FUNCTIONS)
def test_anything_may_come_back(key, capsys):
    for garbage in (None, "42", 0.5, {}, (), np.array([None, {}], dtype=object), float):
        content, printed = told(key, lambda *arguments, garbage=garbage: garbage, capsys)
        assert not content and printed
    question = FUNCTIONS[key]
    for value in (0.0, -1.0, 1e300, np.nan, np.inf):
        failures = []
        for case in question.cases(np.random.default_rng(0)):
            result = filled(question.returns(**case.arguments), value)
            failures.append(exercise.examine(question, case.arguments, result, case.arguments))
        assert any(failure and failure.kind in ("finite", "values", "type") for failure in failures)


# The contract


@pytest.mark.parametrize("key", FUNCTIONS)
def test_cases_are_plain_repeatable_and_in_order_of_their_size(key):
    """In order of the first size they have, because the first case that fails is the one that is shown."""
    first, again = (list(FUNCTIONS[key].cases(np.random.default_rng(5))) for _ in range(2))
    assert len(first) >= 4
    for a, b in zip(first, again, strict=True):
        assert list(inspect.signature(solution(key)).parameters) == list(a.arguments)
        sent = wire.decode(wire.encode(dict(a.arguments)))
        assert str(a) == str(b) and same(dict(a.arguments), dict(b.arguments)) and same(dict(a.arguments), sent)
    sizes = [next(iter(case.sizes.values())) for case in first]
    assert key == "a7.gib" or sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("form", "result", "says"),
    [
        (Array("W", (2, 3)), np.zeros((3, 2)), "W: expected float64 [2, 3], got float64 [3, 2]"),
        (Array("W", (2, 3)), np.zeros((2, 3), np.float32), "W: expected float64 [2, 3], got float32 [2, 3]"),
        (Array("W", (2, "r")), np.zeros(2), "W: expected float64 [2, r], got float64 [2]"),
        (Array("W", (2,)), [0.0, 0.0], "W: expected float64 [2], got list of 2"),
        (Array("W", (2,)), np.array([0, np.inf]), "W: infinity at [1]"),
        (Number("k", int), 2.0, "k: expected an int, got float"),
        (Number("k", int), True, "k: expected an int, got bool"),
        (Number("k", float), float("nan"), "k: NaN"),
        (None, 3, "the result: expected None, got int"),
        ((Array("W", (1,)), None), (np.zeros(1),), "the result: expected 2 values, W, the result[1]; got tuple of 1"),
        ({"alpha": Gone("still there")}, {"alpha": 1.0}, "alpha: still there"),
        (Maybe(Array("b", (2,))), np.zeros(3), "b: expected float64 [2], got float64 [3]"),
    ],
)
def test_a_result_of_another_form_is_told_so(form, result, says):
    with pytest.raises(Misfit) as misfit:
        conform(form, result, "the result")
    assert ": ".join(misfit.value.args[1:]) == says


def test_places_name_the_first_wrong_one_and_what_is_right():
    places = Places().add("W[0]", np.ones(2), np.ones(2)).add("b[0]", np.ones(2), np.array([1.0, 3.0]), {}, "why?")
    failure = places.add("b[1]", 1, 1).add("S", 1, 2).failure()
    first = "b[0]: first difference at [1]"
    assert failure.lines() == [f"{first}: expected 1, got 3 (max relative 2)", "W ok.", "Hint: why?"]
    assert failure.lines(values=False)[0] == first and failure.wrong == ("b", "S")


def test_feedback_says_the_exception_the_shapes_and_as_many_hints_as_are_asked_for(capsys):
    _, printed = told("a1.fuse_reader", lambda W, b, alpha, beta: (W * alpha, b), capsys)
    assert "ValueError: operands could not be broadcast" in printed
    shapes = r"called with W float64 \[2, (\d)\], b float64 \[\1\], alpha float64 \[2\], beta float64 \[2\]"
    assert re.search(shapes, printed)
    content, printed = told("a1.center", lambda D: sys.exit(0), capsys)
    assert not content and "SystemExit" in printed
    _, printed = told("a3.rotate", lambda *arguments: None, capsys, hint=2)
    first, second, _ = FUNCTIONS["a3.rotate"].hints
    assert f"Hint 1: {first}\nHint 2: {second}\nMore help: check(rotate, hint=3)\n" in printed


def test_a_function_is_known_by_the_variable_that_holds_it_or_is_told_what_is_asked_for(capsys, monkeypatch):
    check = feedback.checker(ASSIGNMENTS["a1"])
    monkeypatch.setitem(globals(), "center", lambda D: np.eye(D) - 1 / D)
    assert check(center) and not check(print)  # noqa: F821
    assert capsys.readouterr().out.endswith(
        "has no function print; it asks for center, fuse_reader, fuse_writer, fuse\n"
    )


# Checks that students write


def tried(question, rejected, order=0):
    """The kills of a check that raises where `rejected` says so, of how many right and wrong candidates were tried."""
    trials = []

    def rejects(candidate, trial, right):
        trials.append(right)
        assert trial == len(trials) - 1  # every trial has a generator of its own
        raises = rejected(right, trials.count(True), trials.count(False))
        return exercise.raised("AssertionError", "") if raises else None

    return question.try_out(rejects, np.random.default_rng(order))


@pytest.mark.parametrize("question", MUTATIONS.values(), ids=MUTATIONS)
def test_a_check_kills_what_it_always_rejects_and_gets_nothing_for_counting_or_for_one_wrong_alarm(question):
    assert tried(question, lambda right, rights, wrongs: not right).share == 1
    lenient = tried(question, lambda right, rights, wrongs: not right and wrongs > 1)
    assert lenient.rejected is None and len(lenient.survived) == 1 and lenient.share == 7 / 8
    alarm = tried(question, lambda right, rights, wrongs: not right or rights == question.reference_seeds)
    assert alarm.rejected and alarm.share == 0
    for order in range(20):
        counting = tried(question, lambda right, rights, wrongs: rights + wrongs > question.reference_seeds, order)
        assert counting.share == 0
    assert (len(question.shown), len(question.hidden)) == (3, 5)


def test_candidates_take_arrays_of_their_own_shapes_alone():
    """Small arrays of other shapes could be broadcast to gigabytes, in the grader's process."""
    for name, arguments in {
        "m1.check": (np.ones((1, 900)), None, np.ones((900, 1)), np.ones(1), np.ones((900, 1)), np.ones((900, 1))),
        "m2.check": (np.ones((9, 5)), np.ones(5), np.ones((5, 9)), np.ones(9), np.ones((9, 9)), np.ones((9, 8, 9))),
        "m3.check": (np.ones((1, 5000)), np.ones(1, bool), 1),
    }.items():
        with pytest.raises(ValueError, match="must be an array"):
            MUTATIONS[name].allowed(arguments)
        assert list(MUTATIONS[name].takes) == list(inspect.signature(MUTATIONS[name].reference).parameters)


# Notebooks


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_committed_release_is_what_build_makes(name, tmp_path):
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(ASSIGNMENTS), "only releases are committed"
    builder.build(name.upper(), tmp_path / "notebook.ipynb", release=True)
    assert (NOTEBOOKS / f"{name}.ipynb").read_bytes() == (tmp_path / "notebook.ipynb").read_bytes(), (
        f"in notebooks/assignments, run: python assignment.py build {name} --release --force --to {name}.ipynb"
    )


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_nothing_of_the_solution_is_in_a_release_or_in_an_installed_minislice(name):
    given = ASSIGNMENTS[name]
    cells = builder.released(builder.source(given))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    folders = [path for folder in ("minislice", "data") for path in (ROOT / folder).rglob("*")]  # what a wheel holds
    installed = "\n".join(
        path.read_text("utf-8") for path in folders if path.suffix in (".py", ".md", ".ipynb", ".txt")
    )
    lines = {line.strip() for line in text.splitlines()}
    for question in given.questions:
        answer = re.split(r"### \w+ SOLUTION\n?", builder.function_source(name, question.name))[1].rstrip(" ")
        assert answer not in installed
        inside = [line for line in map(str.strip, answer.splitlines()) if len(line) > 8]  # not "else:" and the like
        assert inside and not [line for line in inside if line in lines or line in text.replace("\n", " ")]
        assert not [name for name in getattr(question, "hidden", ()) if f"def {name}" in text or f"def _{name}" in text]
    for question in given.written:
        answer = (builder.ANSWERS / f"{name}.md").read_text(encoding="utf-8")
        assert f"# {question.name}\n" in answer and lines.isdisjoint(filter(None, answer.splitlines()))
        assert not [number for number in re.findall(r"\d+\.\d+", answer) if number in text]
    assert "SOLUTION" not in text and "SOLUTION" not in installed and "def check(function" in installed
    assert not any({"answers", "solutions", "grading"} & set(path.relative_to(ROOT).parts) for path in folders)


def test_a_wheel_is_the_folder_minislice_and_the_data():
    wheel = (ROOT / "pyproject.toml").read_text("utf-8").split("[tool.hatch.build.targets.wheel")[1:]
    assert wheel[0].strip() == ']\npackages = ["minislice"]'
    assert wheel[1].split("\n\n")[0].split("\n")[1:] == ['"data" = "minislice/data"']


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_cells_are_as_nbgrader_wants_them_and_it_makes_the_same_release(name):
    given = ASSIGNMENTS[name]
    source = builder.source(given)
    tags = {cell["metadata"]["nbgrader"]["grade_id"]: cell["metadata"]["nbgrader"] for cell in source["cells"]}
    assert len(tags) == len(source["cells"]) and sum(tag.get("points", 0) for tag in tags.values()) == given.points
    assert all(tag["schema_version"] == 3 and tag["locked"] != tag["solution"] for tag in tags.values())
    for question in given.questions:
        assert (
            tags[given.test_id(question)]["points"] == question.points and tags[given.answer_id(question)]["solution"]
        )
    preprocessors, nbformat = pytest.importorskip("nbgrader.preprocessors"), pytest.importorskip("nbformat")
    notebook = nbformat.reads(builder.as_json(source), as_version=4)
    notebook, _ = preprocessors.ClearSolutions().preprocess(notebook, {})
    ours = builder.released(source)
    assert [cell.source for cell in notebook.cells] == ["".join(cell["source"]) for cell in ours["cells"]]


def in_one_kernel(notebooks):
    """What notebooks print, executed one after the other; they have no other output."""
    import nbformat
    from nbclient import NotebookClient

    forget = {"cell_type": "code", "metadata": {}, "source": "%reset -f", "outputs": [], "execution_count": None}
    cells = []
    for index, notebook in enumerate(notebooks):
        cells += [{**forget, "id": f"forget-{index}"}, *notebook["cells"]]
    notebook = nbformat.reads(builder.as_json({**notebooks[0], "cells": cells}), as_version=4)
    NotebookClient(notebook, timeout=120, allow_errors=True).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(output.output_type == "stream" and output.name == "stdout" for output in outputs), outputs
    return "".join(output.text for output in outputs)


@pytest.mark.slow
def test_executed_sources_pass_every_check_and_releases_fail_kindly():
    sources = [builder.source(given) for given in ASSIGNMENTS.values()]
    right, empty = in_one_kernel(sources), in_one_kernel(list(map(builder.released, sources)))
    assert "Traceback" not in empty
    for key in QUESTIONS:
        name, function = key.split(".")
        title, success = f"{name.upper()}.{function}  ", "kills 3 of 3 shown and 5 of 5 hidden mutants"
        assert right.count(title + (success if key in MUTATIONS else "ok")) == 1
        more = f"More help: {ASSIGNMENTS[name].tool}({function}, hint=1)\n"
        assert empty.count(f"{title}not written yet\n{more}") == 1


# The command


def test_the_command_lists_and_builds_or_says_why_not(tmp_path, capsys):
    def run(*arguments):
        status = run_script(builder, list(map(str, arguments)))
        return status, "".join(capsys.readouterr())

    status, listed = run("list")
    assert status == 0 and [line.split()[0] for line in listed.splitlines()] == list(ASSIGNMENTS)
    file = tmp_path / "source" / "a3" / "a3.ipynb"
    assert run("build", "A3", "--to", file)[0] == 0 and "BEGIN SOLUTION" in file.read_text(encoding="utf-8")
    for arguments, words in {
        ("a99", "--to", tmp_path / "x.ipynb"): "there is no assignment 'a99'; there are a1, a2",
        ("a3", "--to", file): "exists; write to another file, or replace it with",
        ("a3", "--to", file / "a3.ipynb"): "File exists: ",
    }.items():
        status, printed = run("build", *arguments)
        assert status == 2 and words in printed and printed.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert run("build", "A3", "--to", file, "--release", "--force")[0] == 0
    assert "BEGIN SOLUTION" not in file.read_text(encoding="utf-8")


def test_an_assignment_needs_nothing_but_numpy():
    """The judge of the capstone, which slices a model, imports what it needs when it is called."""
    for path in [*Path(catalogue.__file__).parent.glob("*.py"), *builder.ANSWERS.glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if path.name == "c1.py" else ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names | {"numpy"}, path.name


# The instructors' README, and a question's text


def test_the_readme_lists_every_assignment_and_its_minutes_add_up():
    for name, given in ASSIGNMENTS.items():
        row = f"| [{name.upper()}]({name}.ipynb) | {given.title} | {builder.stars(given.difficulty)} |"
        assert f"{row} {given.minutes} | {given.points} |" in README
    rows = re.findall(r"^\| \d \| [\d, ]+ \| ([AM\d, ]+) \| (\d+) \|$", README, flags=re.MULTILINE)
    assert len(rows) == 5
    for names, minutes in rows:
        assert sum(ASSIGNMENTS[name.lower()].minutes for name in names.split(", ")) == int(minutes)


def test_the_readmes_exercise_works(capsys):
    module = {"__package__": "minislice.teaching.assignments", "__name__": "minislice.teaching.assignments.a10"}
    exec(re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1], module)

    def unit(x):
        return x / np.linalg.norm(x)

    assert module["check"](unit)

    def unit(x):
        return x.copy()

    assert not module["check"](unit)
    printed = capsys.readouterr().out
    assert "A10.unit  ok, 5 cases" in printed and "It is x as it was." in printed


@pytest.mark.slow
def test_calibrating_on_noise_costs_little(capsys):
    """As the question in A4 says: less than twice what calibrating on text costs."""
    text = next(question for question in ASSIGNMENTS["a4"].written if question.name == "noise").text
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], {})
    rows = re.findall(r"^(text|noise) (\S+) -> (\S+)$", capsys.readouterr().out, flags=re.MULTILINE)
    cost = {name: float(sliced) / float(dense) - 1 for name, dense, sliced in rows}
    assert 0 < cost["text"] < cost["noise"] < 2 * cost["text"]
