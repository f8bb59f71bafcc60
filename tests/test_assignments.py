"""The assignments: right answers get full marks, wrong ones are told what is wrong, releases give nothing away."""

import ast
import importlib
import inspect
import json
import re
import runpy
import sys
from pathlib import Path

import assignment as builder
import jaxtyping
import numpy as np
import pytest
from assignment import ANSWERS, as_json, build, function_source, released, source

from minislice.command.cli import run_script
from minislice.teaching.assignments import catalogue
from minislice.teaching.assignments.catalogue import ASSIGNMENTS, assignment
from minislice.teaching.assignments.exercise import MutationQuestion, Question, examine, raised
from minislice.teaching.assignments.feedback import try_case
from minislice.teaching.assignments.forms import Array, Gone, Maybe, Misfit, Number, conform, same
from minislice.teaching.assignments.judging import Places

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks" / "assignments"
sys.path.insert(0, str(HERE / "assignments"))
for module in ("a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9", "m"):
    importlib.import_module(module)
from answers import RIGHT, WRONG  # noqa: E402

QUESTIONS = {  # the capstone's is in test_capstone.py
    f"{given.name}.{question.name}": question
    for given in ASSIGNMENTS.values()
    for question in given.questions
    if given.name != "c1"
}
FUNCTIONS = {key: question for key, question in QUESTIONS.items() if isinstance(question, Question)}
MUTATIONS = {key: question for key, question in QUESTIONS.items() if isinstance(question, MutationQuestion)}


def solution(key):
    name, function = key.split(".")
    return runpy.run_path(ANSWERS / f"{name}.py")[function]


def tool(name):
    return getattr(importlib.import_module(f"minislice.teaching.assignments.{name}"), assignment(name).tool)


def feedback(key, function, capsys, **options):
    """Whether `check` is content, and what it prints."""
    name, asked = key.split(".")
    globals()[asked] = function  # a notebook's variable
    try:
        content = tool(name)(function, **options)
    finally:
        del globals()[asked]
    return content, capsys.readouterr().out


@pytest.fixture
def unchecked():
    """Without the check of annotations, which takes many times as long as what is called."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def first_failure(key, function, seed):
    for case in FUNCTIONS[key].cases(np.random.default_rng(seed)):
        if failure := try_case(FUNCTIONS[key], function, case):
            return failure
    return None


# Answers


@pytest.mark.parametrize("key", QUESTIONS)
def test_right_answers_of_three_styles_get_full_marks(key, capsys, unchecked):
    assert len(RIGHT[key]) >= 3
    for function in [solution(key), *RIGHT[key]]:
        content, printed = feedback(key, function, capsys)
        assert content and "FAILED" not in printed, f"{function}: {printed}"
        for seed in range(25 if key in FUNCTIONS else 0):
            assert first_failure(key, function, seed) is None, f"{function}, seed {seed}"


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_told_where_and_why(wrong, capsys, unchecked):
    """With other random numbers it fails, too; and without values, as the grader says it, no number is told."""
    (function, *pieces), key = WRONG[wrong], wrong.split(":")[0]
    content, printed = feedback(key, function, capsys)
    assert not content and "Traceback" not in printed
    for piece in pieces:
        assert piece in printed
    for seed in range(1, 11 if key in FUNCTIONS else 0):
        failure = first_failure(key, function, seed)
        assert failure and not re.search(r"\d\.\d{3}", "\n".join(failure.lines(values=False)))


def test_every_function_has_a_wrong_answer():
    assert {wrong.split(":")[0] for wrong in WRONG} == set(QUESTIONS)
    assert len(WRONG) > 90


GARBAGE = (None, "42", 0.5, {}, (), np.array([None, {}], dtype=object), float)


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
    for garbage in GARBAGE:
        content, printed = feedback(key, lambda *arguments, garbage=garbage: garbage, capsys)
        assert not content and printed
    question = FUNCTIONS[key]
    for value in (0.0, -1.0, 1e300, np.nan, np.inf):
        results = [
            examine(question, case.arguments, filled(question.returns(case.arguments), value), case.arguments)
            for case in question.cases(np.random.default_rng(0))
        ]
        assert any(failure and failure.kind in ("finite", "values", "type") for failure in results)


# The contract


def plain(value):
    if isinstance(value, (dict, tuple, list)):
        names = value if isinstance(value, dict) else ()
        return all(type(name) is str for name in names) and all(map(plain, dict(value).values() if names else value))
    if isinstance(value, np.ndarray):
        return type(value) is np.ndarray and value.dtype in (np.float64, np.int64, np.bool_)
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("key", FUNCTIONS)
def test_cases_are_plain_repeatable_and_in_order_of_their_size(key):
    """In order of the first size they have, because the first case that fails is the one that is shown."""
    first, again = (FUNCTIONS[key].cases(np.random.default_rng(5)) for _ in range(2))
    assert len(first) >= 4
    for a, b in zip(first, again, strict=True):
        assert list(inspect.signature(solution(key)).parameters) == list(a.arguments)
        assert plain(dict(a.arguments)) and str(a) == str(b)
        assert all(same(a.arguments[name], b.arguments[name]) for name in a.arguments)
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
    places.add("b[1]", 1, 1).add("S", 1, 2)
    assert places.failure().lines() == [
        "b[0]: first difference at [1]: expected 1, got 3 (max relative 2)",
        "W ok.",
        "Hint: why?",
    ]
    assert places.failure().lines(values=False)[0] == "b[0]: first difference at [1]"
    assert places.failure().wrong == ("b", "S")


def test_an_exception_comes_with_the_arguments_shapes(capsys):
    _, printed = feedback("a1.fuse_reader", lambda W, b, alpha, beta: (W * alpha, b), capsys)
    assert "ValueError: operands could not be broadcast" in printed
    assert re.search(
        r"called with W float64 \[2, (\d)\], b float64 \[\1\], alpha float64 \[2\], beta float64 \[2\]", printed
    )
    _, printed = feedback("a3.rotate", lambda weights, Q: weights["W"], capsys)
    assert "called with W_embd float64 [7, 3], " in printed and ", b_out2 None, Q float64 [3, 3, 3]\n" in printed


def tried(question, rejected, order=0):
    """The kills of a check that raises where `rejected` says so, of the candidate and of how often that was tried."""
    seen = []

    def rejects(candidate, trial):
        seen.append(candidate)
        assert trial == len(seen) - 1  # every trial has a generator of its own
        return raised("AssertionError", "") if rejected(candidate, len(seen), seen.count(candidate)) else None

    return question.try_out(rejects, np.random.default_rng(order))


def test_a_mutant_that_one_trial_lets_live_is_not_killed():
    question = next(iter(MUTATIONS.values()))
    kills = tried(question, lambda candidate, _, times: candidate is not question.reference and times > 1)
    assert kills.rejected is None and kills.killed == () and kills.share == 0
    kills = tried(question, lambda candidate, _, times: candidate is question.reference and times == 20)
    assert kills.rejected and kills.share == 0
    assert tried(question, lambda candidate, *_: candidate is not question.reference).share == 1
    assert all((len(each.shown), len(each.hidden)) == (3, 5) for each in MUTATIONS.values())


def test_a_check_that_counts_its_trials_gets_nothing():
    question = next(iter(MUTATIONS.values()))
    for order in range(20):
        assert tried(question, lambda _, trials, times: trials > question.reference_seeds, order).share == 0


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


# Feedback


def test_feedback_comes_in_order(capsys):
    _, printed = feedback("a3.rotate", WRONG["a3.rotate: output bias forgotten"][0], capsys)
    pattern = r"""A3\.rotate  FAILED 5 of 5  \(seed 0: D=3, H=\d, B=2\)  13 of 15 points
b_out\[0\]: first difference at \[0\]: expected \S+, got \S+ \(max relative \S+\)
It is as it was\.
.*W_in ok, b_in ok, W_out ok, S ok.*
Hint: who writes the signal besides W_out\?
More help: check\(rotate, hint=1\)
"""
    assert re.fullmatch(pattern, printed)
    _, printed = feedback("a3.rotate", lambda *arguments: None, capsys, hint=2)
    first, second, _ = FUNCTIONS["a3.rotate"].hints
    assert f"Hint 1: {first}\nHint 2: {second}\nMore help: check(rotate, hint=3)\n" in printed


def test_a_function_of_another_name_is_told_what_is_asked_for(capsys):
    assert not tool("a1")(print)
    assert capsys.readouterr().out == "a1 has no function print; it asks for center, fuse_reader, fuse_writer, fuse\n"


def test_leaving_by_sys_exit_is_an_exception_like_others(capsys):
    content, printed = feedback("a1.center", lambda D: sys.exit(0), capsys)
    assert not content and "SystemExit" in printed


# Notebooks


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_committed_release_is_what_build_makes(name, tmp_path):
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(ASSIGNMENTS), "only releases are committed"
    build(name.upper(), tmp_path / "notebook.ipynb", release=True)
    assert (NOTEBOOKS / f"{name}.ipynb").read_bytes() == (tmp_path / "notebook.ipynb").read_bytes(), (
        f"in notebooks/assignments, run: python assignment.py build {name} --release --force --to {name}.ipynb"
    )


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_every_question_says_its_minutes_difficulty_and_importance(name):
    text = as_json(released(source(ASSIGNMENTS[name])))
    questions = (*ASSIGNMENTS[name].questions, *ASSIGNMENTS[name].written)
    assert text.count(" minutes, difficulty ★") == text.count(", importance ★") == len(questions)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_nothing_of_the_solution_is_in_a_release(name):
    given = ASSIGNMENTS[name]
    release = as_json(released(source(given)))
    text = "\n".join("".join(cell["source"]) for cell in json.loads(release)["cells"])
    lines = {line.strip() for line in text.splitlines()}
    found = 0
    for question in given.questions:
        code = function_source(name, question.name)
        inside = code[code.index("### BEGIN SOLUTION") :].splitlines()[1:-1]
        for line in map(str.strip, inside):
            if len(line) > 8:  # shorter ones are "else:" and the like
                found += 1
                assert line not in lines and line not in text.replace("\n", " "), line
    for question in given.written:
        answer = (ANSWERS / f"{name}.md").read_text(encoding="utf-8")
        assert f"# {question.name}\n" in answer
        for line in filter(None, answer.splitlines()):
            assert line not in lines
        for number in re.findall(r"\d+\.\d+", answer):
            assert number not in text
    assert found >= 4
    assert "SOLUTION" not in text
    for question in given.questions:
        for mutant in getattr(question, "hidden", {}).values():
            assert f"def {mutant.__name__}" not in text


def test_an_installed_minislice_has_neither_answers_nor_grader():
    """A wheel is the folder minislice and the data: neither has a right answer in it."""
    root = HERE.parent
    wheel = (root / "pyproject.toml").read_text("utf-8").split("[tool.hatch.build.targets.wheel")[1:]
    assert wheel[0].strip() == ']\npackages = ["minislice"]' and wheel[1].split("\n\n")[0].split("\n")[1:] == [
        '"data" = "minislice/data"'
    ]
    files = [path for folder in ("minislice", "data") for path in (root / folder).rglob("*") if path.is_file()]
    text = "\n".join(path.read_text("utf-8") for path in files if path.suffix in (".py", ".md", ".ipynb", ".txt"))
    assert "def check(function" in text and "SOLUTION" not in text
    assert not any({"answers", "solutions", "grading"} & set(path.relative_to(root).parts) for path in files)
    for name, given in ASSIGNMENTS.items():
        for question in given.questions:
            answer = inspect.getsource(solution(f"{name}.{question.name}")).split("### BEGIN SOLUTION\n")[1]
            assert answer.split("    ### END SOLUTION")[0] not in text


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_cells_are_as_nbgrader_wants_them(name):
    given = ASSIGNMENTS[name]
    cells = source(given)["cells"]
    ids = [cell["metadata"]["nbgrader"]["grade_id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    points = {cell["metadata"]["nbgrader"]["grade_id"]: cell["metadata"]["nbgrader"].get("points", 0) for cell in cells}
    assert sum(points.values()) == given.points
    assert "HIDDEN TESTS" not in as_json(source(given))  # of which nbgrader would say that the student changed the cell
    for cell in cells:
        tags = cell["metadata"]["nbgrader"]
        assert tags["schema_version"] == 3 and not tags["task"]
        assert tags["locked"] != tags["solution"]
    for question in given.questions:
        assert points[given.test_id(question)] == question.points
        assert ast.parse("".join(cells[ids.index(given.answer_id(question))]["source"]))


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_nbgrader_makes_the_same_release_of_the_source(name):
    preprocessors = pytest.importorskip("nbgrader.preprocessors")
    import nbformat

    notebook = nbformat.reads(as_json(source(ASSIGNMENTS[name])), as_version=4)
    notebook, _ = preprocessors.ClearSolutions().preprocess(notebook, {})
    ours = released(source(ASSIGNMENTS[name]))
    assert [cell.source for cell in notebook.cells] == ["".join(cell["source"]) for cell in ours["cells"]]


def executed(notebook):
    """All that a notebook prints, executed from top to bottom, and the last expression of each cell."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(as_json(notebook), as_version=4)
    NotebookClient(notebook, timeout=120, allow_errors=True).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(output.output_type == "stream" and output.name == "stdout" for output in outputs), outputs
    return "".join(output.text for output in outputs)


def in_one_kernel(notebooks):
    """What notebooks print, one after the other."""
    forget = {"cell_type": "code", "metadata": {}, "source": "%reset -f", "outputs": [], "execution_count": None}
    cells = []
    for index, notebook in enumerate(notebooks):
        cells += [{**forget, "id": f"forget-{index}"}, *notebook["cells"]]
    return executed({**notebooks[0], "cells": cells})


@pytest.mark.slow
def test_executed_sources_pass_every_check_and_releases_fail_kindly():
    sources = [source(given) for given in ASSIGNMENTS.values()]
    right, empty = in_one_kernel(sources), in_one_kernel(list(map(released, sources)))
    assert "Traceback" not in empty
    for key in QUESTIONS:
        name, function = key.split(".")
        title, success = f"{name.upper()}.{function}  ", "kills 3 of 3 shown and 5 of 5 hidden mutants"
        assert right.count(title + (success if key in MUTATIONS else "ok")) == 1
        more = f"More help: {assignment(name).tool}({function}, hint=1)\n"
        assert empty.count(f"{title}not written yet\n{more}") == 1


# The command


def run(*arguments):
    return run_script(builder, list(map(str, arguments)))


def test_the_command_lists_and_builds(tmp_path, capsys):
    assert run("list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ASSIGNMENTS)
    file = tmp_path / "source" / "a3" / "a3.ipynb"
    assert run("build", "A3", "--to", file) == 0
    assert "BEGIN SOLUTION" in file.read_text(encoding="utf-8")
    assert run("build", "A3", "--to", file, "--release", "--force") == 0
    assert "BEGIN SOLUTION" not in file.read_text(encoding="utf-8")


def test_build_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="there is no assignment 'a99'; there are a1, a2"):
        build("a99", tmp_path / "x.ipynb")
    file = tmp_path / "a1.ipynb"
    file.write_text("mine")
    with pytest.raises(ValueError, match="exists; write to another file, or replace it with force"):
        build("a1", file)
    with pytest.raises(ValueError, match="can't write"):
        build("a1", file / "a1.ipynb")
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]
    build("a1", file, force=True)
    assert json.loads(file.read_text())["nbformat"] == 4


def test_an_assignment_needs_nothing_but_numpy():
    """The judge of the capstone, which slices a model, imports what it needs when it is called."""
    for path in [*Path(catalogue.__file__).parent.glob("*.py"), *ANSWERS.glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if path.name == "c1.py" else ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in modules:
                assert module.split(".")[0] in sys.stdlib_module_names | {"numpy"}, f"{path.name} imports {module}"
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1


# The instructors' README


def readme():
    return (NOTEBOOKS / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_assignment():
    for name, given in ASSIGNMENTS.items():
        row = f"| [{name.upper()}]({name}.ipynb) | {given.title} | {builder.stars(given.difficulty)} |"
        assert f"{row} {given.minutes} | {given.points} |" in readme()


def test_the_readmes_minutes_add_up():
    rows = re.findall(r"^\| \d \| [\d, ]+ \| ([AM\d, ]+) \| (\d+) \|$", readme(), flags=re.MULTILINE)
    assert len(rows) == 5
    for names, minutes in rows:
        assert sum(ASSIGNMENTS[name.lower()].minutes for name in names.split(", ")) == int(minutes)


def test_the_readmes_exercise_of_twenty_lines_works(capsys):
    code = re.search(r"```python\n(.*?)```", readme(), flags=re.DOTALL)[1]
    assert sum(1 for line in code.splitlines() if line.strip() and "import" not in line) <= 20
    module = {"__package__": "minislice.teaching.assignments", "__name__": "minislice.teaching.assignments.a10"}
    exec(code, module)

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
