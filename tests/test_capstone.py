"""The capstone: reference plans reach their goals, and no plan brings code, another model, or a larger one."""

import importlib

import numpy as np
import pytest
from assignment import function_source
from grading.marking import mark
from grading.sandbox import Limits, Sandbox
from grading.submission import Submission
from test_assignments import solution

from minislice.teaching.assignments import c1
from minislice.teaching.assignments.c1 import C1, GOALS, SIZE, check, measure
from minislice.teaching.assignments.exercise import examine

QUESTION = C1.question("plan")
WHOLE = {"width": [192] * 9, "neurons": [480] * 4, "drop": [], "adapter": "none", "repair": 0}
PLANS = {
    "neurons": {**WHOLE, "neurons": [213] * 4},
    "slicegpt": {**WHOLE, "width": [126] * 8 + [192], "adapter": "full"},
}


def failure_of(plan):
    return examine(QUESTION, {}, plan, {})


@pytest.mark.parametrize("name", PLANS)
def test_each_method_reaches_its_own_goal_and_not_the_next(name):
    failure = failure_of(PLANS[name])
    reached = [goal for goal in GOALS if goal not in failure.wrong]
    assert reached == [*GOALS][: [*GOALS].index(name) + 1] and failure.fine == tuple(reached)
    assert QUESTION.share([failure]) == sum(QUESTION.parts[goal] for goal in reached) / QUESTION.points


def test_the_answer_reaches_all_and_the_judge_stays_as_it_was(capsys):
    model = c1.frozen()[0]
    before, plan = {name: weight.clone() for name, weight in model.state_dict().items()}, solution("c1.plan")
    assert check(plan) and "C1.plan  ok" in capsys.readouterr().out
    share, ratio = measure(plan())
    assert share <= SIZE and ratio.ratio <= GOALS["mixed"]
    assert measure(plan()) == (share, ratio)
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())


class Word(str):
    """A word that equals every word."""

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


CHEATS = {
    "nothing deleted": (WHOLE, "more than 80%"),
    "a full adapter at every boundary": ({**WHOLE, "adapter": "full"}, "more than 80%"),
    "more neurons than there are": ({**WHOLE, "neurons": [4800] * 4}, "neurons"),
    "wider than the model": ({**WHOLE, "width": [4096] * 9}, "width"),
    "no width": ({**WHOLE, "width": [0] * 9}, "width"),
    "less than no neurons": ({**WHOLE, "neurons": [-480] * 4}, "neurons"),
    "blocks that are not there": ({**WHOLE, "drop": [99]}, "drop"),
    "the same block left out often": ({**WHOLE, "drop": [1, 1, 1, 1, 1]}, "neurons"),
    "a long list": ({**WHOLE, "drop": [0] * 10**6}, "at most 64 ints"),
    "fractions": ({**WHOLE, "width": [96.5] * 9}, "expected an int"),
    "NaN": ({**WHOLE, "neurons": [float("nan")] * 4}, "expected an int"),
    "an array": ({**WHOLE, "width": np.full(9, 96)}, "expected a list"),
    "a folder": ({**WHOLE, "adapter": "/etc/passwd"}, "expected one of full"),
    "a word that equals all": ({**WHOLE, "adapter": Word("x")}, "expected one of full"),
    "a function": ({**WHOLE, "repair": print}, "expected an int"),
    "a model": ("mini-opt", "expected a dictionary"),
    "nothing": ({}, "expected a list"),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_get_nothing_and_are_told_why(cheat):
    plan, says = CHEATS[cheat]
    failure = failure_of(plan)
    assert says in "\n".join(failure.lines(values=False)) and QUESTION.share([failure]) == 0


SUBMISSIONS = {
    "a plan": (function_source("c1", "plan"), 1.0, "ok, 1 cases"),
    "a judge that is patched": ("import minislice\n\ndef plan():\n    return {}", 0.0, "ModuleNotFoundError"),
    "an object": (
        "class Plan(dict):\n    pass\n\ndef plan():\n    return Plan(width=print)",
        0.0,
        "it must be made of",
    ),
    "a model as numbers": ("def plan():\n    return {'weights': [0.5] * 100}", 0.0, "expected a list"),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_the_grader_runs_a_students_code_without_minislice(name):
    code, share, says = SUBMISSIONS[name]
    sandbox = Sandbox.best(Limits(), [])
    found = mark(C1, QUESTION, Submission({"c1_plan": code}), [], sandbox, b"secret", {})
    assert found.share == share and says in "\n".join(found.lines), found


def test_what_is_not_asked_for_never_arrives(monkeypatch):
    """A plan's other entries, such as another tokens or slicer, don't reach `slice_model`."""
    given = []
    monkeypatch.setattr(c1, "measure", lambda plan: given.append(plan) or (1.0, None))
    failure_of({**WHOLE, "slicer": print, "calibration": print, "basis": "random", "head": "own", "batch_size": 10**9})
    assert given == [WHOLE]


def test_the_text_says_what_the_judge_asks_for():
    table = importlib.import_module("capstone")
    for name, goal in GOALS.items():
        (line,) = (line for line in QUESTION.text.splitlines() if line.startswith(f"| {table.NAMES[name]}, "))
        assert line.endswith(f"| {goal:.2f} | {QUESTION.parts[name]} |")
    assert sum(QUESTION.parts.values()) == QUESTION.points
