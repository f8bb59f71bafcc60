"""The assignments: right answers get full marks, wrong ones are told what is wrong, releases give nothing away."""

import importlib
import inspect
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import assignment as builder
import numpy as np
import other_answers
import pytest
from commands import assert_refused
from grading import wire
from wrong_answers import WRONG

from minislice.command.cli import run_script
from minislice.teaching.assignments import NAMES, assignment, exercise, feedback, markdown
from minislice.teaching.assignments.forms import same

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks" / "assignments"
README = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
ASSIGNMENTS = {name: assignment(name) for name in NAMES}
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


def first_failure(key, function, seed):
    return FUNCTIONS[key].mark(partial(feedback.called, function), np.random.default_rng(seed)).failure


@pytest.mark.parametrize("key", QUESTIONS)
def test_right_answers_get_full_marks(key, capsys):
    other = vars(other_answers).get(key.replace(".", "_"))
    for function in filter(None, (solution(key), other)):
        content, printed = told(key, function, capsys)
        assert content and "FAILED" not in printed, printed
        for seed in range(4 if key in FUNCTIONS else 0):
            assert first_failure(key, function, seed) is None, f"{function}, seed {seed}"


@pytest.mark.parametrize(("key", "wrong"), [(key, wrong) for key in QUESTIONS for wrong in WRONG[key]])
def test_a_wrong_answer_is_told_where_and_why(key, wrong, capsys, tmp_path):
    """With other random numbers it fails, too; and without values, as the grader says it, no number is told."""
    old, new, *pieces = wrong
    name, asked = key.split(".")
    answer, file = builder.function_source(name, asked), tmp_path / "answer.py"
    assert old in answer
    others = (builder.ANSWERS / f"{name}.py").read_text("utf-8")
    file.write_text(others.replace(answer, answer.replace(old, new)))
    function = runpy.run_path(file)[asked]
    content, printed = told(key, function, capsys)
    assert not content and not [piece for piece in pieces if piece not in printed], printed
    for seed in range(1, 4 if key in FUNCTIONS else 0):
        failure = first_failure(key, function, seed)
        assert failure and not re.search(r"\d\.\d{3}", "\n".join(failure.lines(values=False)))


@pytest.mark.parametrize("key", FUNCTIONS)
def test_anything_may_come_back(key, capsys):
    for garbage in (None, "42", 0.5, {}, (), np.array([None, {}], dtype=object)):
        content, _ = told(key, lambda *arguments, garbage=garbage: garbage, capsys)
        assert not content


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


def test_feedback_says_the_exception_the_shapes_and_as_many_hints_as_are_asked_for(capsys):
    _, printed = told("a1.fuse_reader", lambda W, b, alpha, beta: (W * alpha, b), capsys, hint=2)
    assert "ValueError: operands could not be broadcast" in printed
    shapes = r"called with W float64 \[2, (\d)\], b float64 \[\1\], alpha float64 \[2\], beta float64 \[2\]"
    assert re.search(shapes, printed)
    first, second, *_ = FUNCTIONS["a1.fuse_reader"].hints
    assert f"Hint 1: {first}\nHint 2: {second}\n" in printed
    content, printed = told("a1.center", lambda D: sys.exit(0), capsys)
    assert not content and "SystemExit" in printed and "More help: check(center, hint=1)" in printed


def test_a_function_is_known_by_the_variable_that_holds_it_or_is_told_what_is_asked_for(capsys, monkeypatch):
    check = feedback.checker(ASSIGNMENTS["a1"])
    monkeypatch.setitem(globals(), "center", lambda D: np.eye(D) - 1 / D)
    assert check(center) and not check(print)  # noqa: F821
    assert capsys.readouterr().out.endswith(
        "has no function print; it asks for center, fuse_reader, fuse_writer, fuse\n"
    )
    with pytest.raises(ValueError, match="seed must be a whole number from 0"):
        check(center, seed=-1)  # noqa: F821


def tried(question, rejected, order=0):
    """The kills of a check that raises where `rejected` says so, of how many right and wrong candidates were tried."""
    trials = []

    def call(arguments, candidate, seed):
        trials.append(candidate.__kwdefaults__["run"] is question.reference)
        raises = rejected(trials[-1], trials.count(True), trials.count(False))
        return exercise.raised("AssertionError", "") if raises else (None, {})

    return question.mark(call, np.random.default_rng(order)).share


@pytest.mark.parametrize("question", MUTATIONS.values(), ids=MUTATIONS)
def test_a_check_kills_what_it_always_rejects_and_gets_nothing_for_counting_or_for_one_wrong_alarm(question):
    assert tried(question, lambda right, rights, wrongs: not right) == 1
    assert tried(question, lambda right, rights, wrongs: not right and wrongs > 1) == 7 / 8
    assert tried(question, lambda right, rights, wrongs: not right or rights == question.reference_seeds) == 0
    for order in range(20):
        assert tried(question, lambda right, rights, wrongs: rights + wrongs > question.reference_seeds, order) == 0
    assert (len(question.shown), len(question.hidden)) == (3, 5)


def test_candidates_take_small_arrays_alone():
    """Others could be broadcast to gigabytes, in the grader's process."""
    small = [None, 3, np.float64(2), np.ones(()), np.ones(1000), np.ones((1000, 10))]
    assert same(exercise.allowed(small), small)
    for large in (np.ones(1001), np.ones((101, 100)), np.ones((2, 2, 2)), [1.0], {}):
        with pytest.raises(ValueError, match="a candidate takes None, numbers, and arrays"):
            exercise.allowed([1, large])


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_committed_release_is_what_build_makes(name, tmp_path):
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(ASSIGNMENTS), "only releases are committed"
    builder.build(name.upper(), tmp_path / "notebook.ipynb", release=True)
    assert (NOTEBOOKS / f"{name}.ipynb").read_bytes() == (tmp_path / "notebook.ipynb").read_bytes(), (
        f"in notebooks/assignments, run: python assignment.py build {name} --release --force --to {name}.ipynb"
    )


def test_a_list_needs_no_nbformat_and_a_notebook_says_how_to_get_it(monkeypatch, capfd, tmp_path):
    monkeypatch.setitem(sys.modules, "nbformat", None)
    script = SimpleNamespace(**runpy.run_path(builder.__file__))
    assert run_script(script, ["list"]) == 0 and "a1  " in capfd.readouterr().out
    status = run_script(script, ["build", "a1", "--to", str(tmp_path / "a1.ipynb")])
    assert_refused((status, *capfd.readouterr()), 'pip install -e ".[grading]"')


WHEEL = [path for folder in ("minislice", "data") for path in (ROOT / folder).rglob("*")]
INSTALLED = "\n".join(path.read_text("utf-8") for path in WHEEL if path.suffix in (".py", ".md", ".ipynb", ".txt"))


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_nothing_of_the_solution_is_in_a_release_or_in_an_installed_minislice(name):
    given = ASSIGNMENTS[name]
    text = "\n".join(cell.source for cell in builder.notebook(given, release=True).cells)
    lines = {line.strip() for line in text.splitlines()}
    for question in given.questions:
        answer = builder.function_source(name, question.name).split('"""', 2)[2]
        inside = {line for line in map(str.strip, answer.splitlines()) if len(line) > 8}  # not "else:" and the like
        assert inside and lines.isdisjoint(inside) and answer not in INSTALLED
        assert not [name for name in getattr(question, "hidden", ()) if f"def {name}" in text or f"def _{name}" in text]
    for question in given.written:
        answer = (builder.ANSWERS / f"{name}.md").read_text(encoding="utf-8")
        assert f"# {question.name}\n" in answer and lines.isdisjoint(filter(None, answer.splitlines()))
    assert "SOLUTION" not in text


def test_a_wheel_is_the_folder_minislice_and_the_data_and_holds_no_answers():
    wheel = (ROOT / "pyproject.toml").read_text("utf-8").split("[tool.hatch.build.targets.wheel")[1:]
    assert wheel[0].strip() == ']\npackages = ["minislice"]'
    assert wheel[1].split("\n\n")[0].split("\n")[1:] == ['"data" = "minislice/data"']
    assert "SOLUTION" not in INSTALLED and "def check(function" in INSTALLED
    assert not any({"answers", "solutions", "grading"} & set(path.relative_to(ROOT).parts) for path in WHEEL)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_cells_are_as_nbgrader_wants_them_and_it_makes_the_same_release(name):
    given = ASSIGNMENTS[name]
    source = builder.notebook(given)
    tags = {cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader for cell in source.cells}
    assert len(tags) == len(source.cells) and sum(tag.get("points", 0) for tag in tags.values()) == given.points
    assert all(tag["schema_version"] == 3 and tag["locked"] != tag["solution"] for tag in tags.values())
    cleared, _ = pytest.importorskip("nbgrader.preprocessors").ClearSolutions().preprocess(source, {})
    ours = builder.notebook(given, release=True).cells
    assert [cell.source for cell in cleared.cells] == [cell.source for cell in ours]


@pytest.mark.parametrize("name", [name for name in ASSIGNMENTS if name != "c1"])
def test_a_source_passes_its_checks_and_a_release_fails_kindly(name, capsys):
    given, printed = ASSIGNMENTS[name], []
    for release in (False, True):
        variables = {}
        for cell in builder.notebook(given, release).cells:
            if cell.cell_type == "code":
                exec(cell.source, variables)
        printed.append(capsys.readouterr().out)
    right, empty = printed
    success = "ok" if given.tool == "check" else "kills 3 of 3 shown and 5 of 5 hidden mutants"
    for question in given.questions:
        title, more = f"{name.upper()}.{question.name}  ", f"More help: {given.tool}({question.name}, hint=1)\n"
        assert right.count(title + success) == 1 and empty.count(f"{title}not written yet\n{more}") == 1


def test_the_command_lists_and_builds_or_says_why_not(tmp_path, capsys):
    file = tmp_path / "source" / "a3" / "a3.ipynb"
    assert run_script(builder, ["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ASSIGNMENTS)
    assert run_script(builder, ["build", "A3", "--to", str(file)]) == 0 and "BEGIN SOLUTION" in file.read_text()
    for name, words in {"a99": "no assignment 'a99'; there are a1, a2", "a3": "exists; write to another file"}.items():
        assert run_script(builder, ["build", name, "--to", str(file)]) == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1
    assert run_script(builder, ["build", "a3", "--to", str(file), "--release", "--force"]) == 0
    assert "BEGIN SOLUTION" not in file.read_text()


def test_an_assignment_needs_nothing_but_numpy():
    """The judge of the capstone, which slices a model, imports what it needs when it is called."""
    for path in [*Path(exercise.__file__).parent.glob("*.py"), *builder.ANSWERS.glob("*.py")]:
        imported = re.findall(r"^(?:from|import) (\.\.|\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert {*imported} <= sys.stdlib_module_names | {"numpy"}, path.name


def test_the_readmes_exercise_works(capsys, monkeypatch, tmp_path):
    text, code = (re.search(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)[1] for kind in ("markdown", "python"))
    monkeypatch.setattr(markdown, "TEXTS", tmp_path)
    (tmp_path / "a10.md").write_text(text, encoding="utf-8")
    module = {"__package__": "minislice.teaching.assignments", "__name__": "minislice.teaching.assignments.a10"}
    exec(code, module)

    for answer, right in ((lambda x: x / np.linalg.norm(x), True), (lambda x: x.copy(), False)):
        answer.__name__ = "unit"
        assert module["check"](answer) is right
    printed = capsys.readouterr().out
    assert "A10.unit  ok, 5 cases" in printed and "It is x as it was." in printed
    (tmp_path / "a10.md").write_text(text.replace(" points", ""), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a10.md isn't written as the other texts are, from 'unit"):
        exec(code, module)


@pytest.mark.slow
def test_calibrating_on_noise_costs_little(capsys):
    """As the question in A4 says: less than twice what calibrating on text costs."""
    text = next(question for question in ASSIGNMENTS["a4"].written if question.name == "noise").text
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], {})
    rows = dict(re.findall(r"(dense|text|noise) (\S+)$", capsys.readouterr().out, flags=re.MULTILINE))
    cost = {name: float(perplexity) / float(rows["dense"]) - 1 for name, perplexity in rows.items()}
    assert 0 < cost["text"] < cost["noise"] < 2 * cost["text"]
