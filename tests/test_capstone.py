"""The capstone: reference plans reach their goals, and no plan brings code, another model, or a larger one."""

import pytest
import torch
from grade import mark
from grading.sandbox import Sandbox
from test_assignments import solution

import minislice
from minislice.teaching.assignments import c1

(QUESTION,) = c1.C1.questions
WHOLE = {"width": [192] * 9, "neurons": [480] * 4, "drop": [], "adapter": "none", "repair": 0}


@pytest.mark.slow
def test_the_papers_method_reaches_its_own_goal_and_not_the_next():
    failure = QUESTION.examine({}, {**WHOLE, "width": [126] * 8 + [192], "adapter": "full"}, {})
    assert failure.fine == ("neurons", "slicegpt") and failure.wrong == ("mixed",)
    assert QUESTION.share([failure]) == 15 / 25


@pytest.mark.slow
def test_the_answer_reaches_all_and_the_judge_stays_as_it_was(capsys):
    model = c1.frozen()[0]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert c1.check(solution("c1.plan")) and "C1.plan  ok" in capsys.readouterr().out
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({**WHOLE, "neurons": [4800] * 4}, "neurons"),
        ({**WHOLE, "width": [0] * 9}, "width"),
        ({**WHOLE, "drop": [2] * 10**6}, "got 9 widths; this model has 8 boundaries"),
        ({**WHOLE, "adapter": "wide"}, "adapter must be one of full"),
        ({**WHOLE, "repair": print}, "repair: expected bool | int, got builtin_function_or_method"),
        ({**WHOLE, "drop": {0}}, "drop: expected list, got set"),
        ({**WHOLE, "repair": None}, "repair: expected bool | int, got None"),
        ({**WHOLE, "width": [192.0] * 9}, "width must be a whole number, or one for each boundary, got [192.0, "),
        ("mini-opt", "expected a dictionary"),
    ],
)
def test_cheats_get_nothing_and_are_told_why(plan, says, monkeypatch):
    model = minislice.load(c1.MODEL, dtype="float32")[0]
    monkeypatch.setattr(c1, "frozen", lambda: (model, torch.zeros(1, 8, dtype=torch.int64), None, None))
    failure = QUESTION.examine({}, plan, {})
    assert says in "\n".join(failure.lines(values=False)) and QUESTION.share([failure]) == 0


def test_the_grader_runs_a_students_code_without_minislice_and_measures_the_plan_itself(monkeypatch):
    """A plan's other entries, such as another basis, don't arrive."""
    plans, sandbox = [], Sandbox().best()
    monkeypatch.setattr(c1, "measure", lambda plan: plans.append(plan) or (1.0, None))
    plan = f"{WHOLE | {'basis': 'random', 'batch_size': 10**9}}"
    for code, says in {
        f"def plan():\n    return {plan}": "more than 80%",
        "import minislice\n\ndef plan():\n    return {}": "ModuleNotFoundError",
        "class P(dict):\n    pass\n\ndef plan():\n    return P(width=print)": "it must be made of",
    }.items():
        found = mark(c1.C1, QUESTION, {"c1_plan": code}, [], {}, sandbox, b"secret")
        assert found.share == 0 and says in "\n".join(found.lines())
    assert plans == [WHOLE]


def test_the_text_names_the_goals_and_their_points():
    for name, goal in c1.GOALS.items():
        assert f"| {goal:.2f} | {QUESTION.parts[name]} |\n" in QUESTION.text + "\n"
    assert sum(QUESTION.parts.values()) == QUESTION.points
