"""Try every solution on many seeds: `python full_marks.py SEEDS`, prints failures by question as JSON.

A process of its own, because conftest.py has annotations checked in its own, which takes many times as long as what is
called; and without minislice's own `__init__`, because assignments need nothing of the rest of it.
"""

import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np

minislice = types.ModuleType("minislice")
ROOT = Path(__file__).parents[2]
minislice.__path__ = [str(ROOT / "minislice")]
sys.modules["minislice"] = minislice

from minislice.teaching.assignments.catalogue import ASSIGNMENTS  # noqa: E402
from minislice.teaching.assignments.exercise import Question  # noqa: E402
from minislice.teaching.assignments.feedback import try_case  # noqa: E402

found = {}
for name, given in ASSIGNMENTS.items():
    answers = runpy.run_path(ROOT / "notebooks" / "assignments" / "answers" / f"{name}.py")
    for question in given.questions:
        if isinstance(question, Question):
            failures = found[f"{name}.{question.name}"] = []
            for seed in range(int(sys.argv[1])):
                for case in question.cases(np.random.default_rng(seed)):
                    if failure := try_case(question, answers[question.name], case):
                        failures.append(f"seed {seed}, {case}: {failure.lines()}")
print(json.dumps(found))
