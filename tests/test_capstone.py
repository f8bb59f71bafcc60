"""The capstone: reference plans reach their goals, and no plan brings code, another model, or a larger one."""

import capstone
import numpy as np
import pytest
from assignment import function_source
from grading.marking import mark
from grading.sandbox import Limits, Sandbox
from grading.submission import Submission
from test_assignments import solution

from minislice.teaching.assignments import c1
from minislice.teaching.assignments.exercise import examine

QUESTION = c1.C1.question("plan")
WHOLE = {"width": [192] * 9, "neurons": [480] * 4, "drop": [], "adapter": "none", "repair": 0}
PLANS = {
    "neurons": {**WHOLE, "neurons": [213] * 4},
    "slicegpt": {**WHOLE, "width": [126] * 8 + [192], "adapter": "full"},
}


@pytest.mark.parametrize("name", PLANS)
def test_each_method_reaches_its_own_goal_and_not_the_next(name):
    failure = examine(QUESTION, {}, PLANS[name], {})
    reached = [goal for goal in c1.GOALS if goal not in failure.wrong]
    assert reached == [*c1.GOALS][: [*c1.GOALS].index(name) + 1] and failure.fine == tuple(reached)
    assert QUESTION.share([failure]) == sum(QUESTION.parts[goal] for goal in reached) / QUESTION.points


def test_the_answer_reaches_all_and_the_judge_stays_as_it_was(capsys):
    model = c1.frozen()[0]
    before, plan = {name: weight.clone() for name, weight in model.state_dict().items()}, solution("c1.plan")
    share, ratio = c1.measure(plan())
    assert share <= c1.SIZE and ratio.ratio <= c1.GOALS["mixed"]
    assert c1.check(plan) and "C1.plan  ok" in capsys.readouterr().out
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())


class Word(str):
    """A word that equals every word."""

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({**WHOLE, "adapter": "full"}, "more than 80%"),
        ({**WHOLE, "neurons": [4800] * 4}, "neurons"),
        ({**WHOLE, "width": [0] * 9}, "width"),
        ({**WHOLE, "neurons": [-480] * 4}, "neurons"),
        ({**WHOLE, "drop": [99]}, "drop"),
        ({**WHOLE, "drop": [1, 1, 1, 1, 1]}, "neurons"),
        ({**WHOLE, "drop": [0] * 10**6}, "at most 64 ints"),
        ({**WHOLE, "width": [96.5] * 9}, "expected an int"),
        ({**WHOLE, "width": np.full(9, 96)}, "expected a list"),
        ({**WHOLE, "adapter": "/etc/passwd"}, "expected one of full"),
        ({**WHOLE, "adapter": Word("x")}, "expected one of full"),
        ({**WHOLE, "repair": print}, "expected an int"),
        ("mini-opt", "expected a dictionary"),
        ({}, "expected a list"),
    ],
)
def test_cheats_get_nothing_and_are_told_why(plan, says):
    failure = examine(QUESTION, {}, plan, {})
    assert says in "\n".join(failure.lines(values=False)) and QUESTION.share([failure]) == 0


@pytest.mark.parametrize(
    ("code", "share", "says"),
    [
        (function_source("c1", "plan"), 1.0, "ok, 1 cases"),
        ("import minislice\n\ndef plan():\n    return {}", 0.0, "ModuleNotFoundError"),
        ("class P(dict):\n    pass\n\ndef plan():\n    return P(width=print)", 0.0, "it must be made of"),
    ],
)
def test_the_grader_runs_a_students_code_without_minislice(code, share, says):
    found = mark(c1.C1, QUESTION, Submission({"c1_plan": code}), [], Sandbox.best(Limits(), []), b"secret", {})
    assert found.share == share and says in "\n".join(found.lines), found


def test_what_is_not_asked_for_never_arrives(monkeypatch):
    """A plan's other entries, such as another tokens or slicer, don't reach `slice_model`."""
    given = []
    monkeypatch.setattr(c1, "measure", lambda plan: given.append(plan) or (1.0, None))
    examine(QUESTION, {}, {**WHOLE, "slicer": print, "basis": "random", "head": "own", "batch_size": 10**9}, {})
    assert given == [WHOLE]


def test_the_text_says_what_the_judge_asks_for():
    for name, goal in c1.GOALS.items():
        (line,) = (line for line in QUESTION.text.splitlines() if line.startswith(f"| {capstone.NAMES[name]}, "))
        assert line.endswith(f"| {goal:.2f} | {QUESTION.parts[name]} |")
    assert sum(QUESTION.parts.values()) == QUESTION.points
