"""Grading a course: nbgrader's commands in order, a dozen submissions, and books that are whole or as they were."""

import contextlib
import csv
import html
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import assignment
import grade as grading
import pytest
from assignment import build, function_source
from grade import COLUMNS, grade
from grading.book import Book
from grading.sandbox import Limits, Sandbox

from minislice.command.cli import main

pytest.importorskip("nbgrader", reason='needs nbgrader: pip install -e ".[grading]"')
LIMITS = Limits(cpu=2)
RIGHT = function_source("a3", "rotate")


def changed(old, new):
    assert old in RIGHT
    return RIGHT.replace(old, new)


LOOPS = """
def turned(W, Q):
    return None if W is None else np.array([W[l] @ Q[l] for l in range(len(W))])

def rotate(weights, Q):
    B = len(Q) - 1
    new = {**weights, "W_embd": weights["W_embd"].dot(Q[0]), "W_head": Q[B].T.dot(weights["W_head"])}
    new["W_pos"] = None if weights["W_pos"] is None else weights["W_pos"].dot(Q[0])
    new["W_in"] = np.stack([Q[l].T @ weights["W_in"][l] for l in range(B)])
    for name in ["W_out", "b_out", "W_out2", "b_out2"]:
        new[name] = turned(weights[name], Q[1:])
    return (new, np.stack([Q[l].T @ Q[l + 1] for l in range(B)]))
"""
EINSUM = """
from functools import partial
mm = partial(np.einsum, optimize=True)
def rotate(w, Q):
    w = {k: (None if v is None else v.copy()) for k, v in w.items()}
    for k in w:
        if w[k] is None:
            continue
        if k in ("W_embd", "W_pos"):
            w[k] = mm("vd,de->ve", w[k], Q[0])
        elif k == "W_in":
            w[k] = mm("bde,bdh->beh", Q[:-1], w[k])
        elif k.startswith("W_out"):
            w[k] = mm("bhd,bde->bhe", w[k], Q[1:])
        elif k.startswith("b_out"):
            w[k] = mm("bd,bde->be", w[k], Q[1:])
        elif k == "W_head":
            w[k] = mm("de,dv->ev", Q[-1], w[k])
    return [w, mm("bde,bdf->bef", Q[:-1], Q[1:])]
"""
CLASS = """
class Turner:
    def __init__(self, Q): self.Q = Q
    def write(self, l, W): return W if W is None else W @ self.Q[l]
    def read(self, l, W): return self.Q[l].swapaxes(-1, -2) @ W
rotate = lambda weights, Q: (
    weights | {k: Turner(Q).write(0, weights[k]) for k in ("W_embd", "W_pos")}
    | {"W_in": Turner(Q).read(slice(0, -1), weights["W_in"]), "W_head": Turner(Q).read(-1, weights["W_head"])}
    | {k: Turner(Q).write(slice(1, None), weights[k]) for k in ("W_out", "W_out2")}
    | {k: None if weights[k] is None else Turner(Q).write(slice(1, None), weights[k][:, None])[:, 0]
       for k in ("b_out", "b_out2")},
    Turner(Q).read(slice(0, -1), Q[1:]),
)
"""

# By student: the answer, the status, and words of the comment.
CLASSROOM = {
    "ada": (RIGHT, "passed", "A3.rotate  ok, 5 cases"),
    "bea": (LOOPS, "passed", "ok"),
    "cem": (EINSUM, "passed", "ok"),
    "dia": (CLASS, "passed", "ok"),
    "eva": (changed("Q[-1].T @", "Q[-1] @"), "partial", "W_head: first difference"),
    "fin": (changed('("b_out", "b_out2")', "()"), "partial", "Hint: who writes the signal besides W_out?"),
    "gus": (
        changed("Q[-1].T @", "Q[-1].T @ 1 @"),
        "failed",
        '`rotated["W_head"] = Q[-1].T @ 1 @ weights["W_head"]`: V',
    ),
    "hal": (
        "np.allclose = lambda *a, **k: True\ndef rotate(weights, Q):\n    return weights, Q[1:]",
        "failed",
        "W_embd",
    ),
    "ian": ("import os\nos._exit(0)", "stopped", "the process ended before the function returned"),
    "jan": ("from minislice.teaching.assignments.a3 import A3", "failed", "ModuleNotFoundError"),
    "kim": ("def rotate(weights, Q):\n    while True:\n        pass", "stopped", "took more than 2 s"),
    "leo": ("def rotate(w, Q):\n    raise IOError('<script>alert(1)</script>')", "failed", "IOError('<script>"),
    "mia": (None, "unanswered", "not written yet"),
}
POINTS = {"passed": 15.0, "partial": 13.0}  # those who are partly right have all but a part of two points


def notebook(file, answer=None, change=None):
    """A release with an answer in its cell."""
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    if answer is not None:
        cell_of(content, "a3_rotate")["source"] = answer
    if change:
        change(content)
    return json.dumps(content)


def cell_of(content, grade_id):
    return next(cell for cell in content["cells"] if cell["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)


def hand_in(course, student, text):
    file = course / "submitted" / student / "a3" / "a3.ipynb"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def table(file):
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# The whole course


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The folder of a course after the instructors' commands, from an empty folder to the totals."""
    folder = tmp_path_factory.mktemp("class")
    program = shutil.which("nbgrader", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    environment = {**os.environ, "HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder / "jupyter")}

    def nbgrader(*arguments, status=0):
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr[-2000:]
        return done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "Limits", lambda: LIMITS)
        patch.chdir(folder)
        nbgrader("quickstart", "course")
        course = folder / "course"
        patch.chdir(course)
        students = [*CLASSROOM, "edited", "deleted", "twice", "broken", "absent"]
        lines = [f"{student},{student.title()},Student,{student}@example.org" for student in students]
        Path("students.csv").write_text("\n".join(["id,first_name,last_name,email", *lines]))
        nbgrader("db", "student", "import", "students.csv")
        assert assignment.main(["build", "a3", "--to", "source/a3/a3.ipynb"]) == 0
        nbgrader("generate_assignment", "a3")
        hand_in_all(course)
        # It fails on the broken one, which it registers all the same.
        Path("said").write_text(nbgrader("autograde", "a3", "--no-execute", status=1))
        shutil.copy("gradebook.db", "autograded.db")
        Path("secret").write_text("nobody guesses this\n")
        assert grading.main(["a3", "--seed-file", "secret", "--csv", "a3-questions.csv", "--quiet"]) == 0
        nbgrader("generate_feedback", "a3", "--force")
        nbgrader("export", "--to", "totals.csv")
        nbgrader("generate_solution", "a3")
    return course


def hand_in_all(course):
    release = course / "release" / "a3" / "a3.ipynb"
    for student, (answer, *_) in CLASSROOM.items():
        hand_in(course, student, notebook(release, answer))
    wrong = "def rotate(weights, Q):\n    return weights, Q[1:]"
    hand_in(
        course, "edited", notebook(release, wrong, lambda n: cell_of(n, "a3_rotate_test").update(source="assert 1"))
    )
    hand_in(course, "deleted", notebook(release, wrong, lambda n: n["cells"].remove(cell_of(n, "a3_rotate_test"))))
    again = {"id": "again", "source": RIGHT}
    hand_in(
        course, "twice", notebook(release, RIGHT, lambda n: n["cells"].append({**cell_of(n, "a3_rotate"), **again}))
    )
    hand_in(course, "broken", "this is not a notebook")


@pytest.mark.parametrize("student", CLASSROOM)
def test_every_student_gets_what_the_answer_deserves(graded, student):
    _, status, words = CLASSROOM[student]
    (row,) = [row for row in table(graded / "a3-questions.csv") if row["student"] == student]
    assert (row["status"], float(row["points"]), row["max"]) == (status, POINTS.get(status, 0.0), "15.0")
    assert words in row["message"]


@pytest.mark.parametrize("student", CLASSROOM)
def test_the_feedback_says_it_in_the_student_s_notebook(graded, student):
    _, status, words = CLASSROOM[student]
    page = (graded / "feedback" / student / "a3" / "a3.html").read_text(encoding="utf-8")
    comment = re.search(r"<b>Comments:</b>(.*?)</div>", page, flags=re.DOTALL).group(1)
    assert words in html.unescape(comment)
    assert f"Score: {POINTS.get(status, 0.0)} / 15.0" in page
    assert "<script>" not in comment


@pytest.mark.parametrize(
    ("student", "status"),
    [("edited", "failed"), ("deleted", "failed"), ("twice", "duplicate"), ("broken", "unreadable")],
)
def test_a_notebook_that_was_tampered_with_gets_nothing(graded, student, status):
    (row,) = [row for row in table(graded / "a3-questions.csv") if row["student"] == student]
    assert (row["status"], row["points"]) == (status, "0.0")


def test_the_totals_are_those_of_the_table(graded):
    assert list(table(graded / "a3-questions.csv")[0]) == list(COLUMNS)
    points = {row["student"]: float(row["points"]) for row in table(graded / "a3-questions.csv")}
    totals = {row["student_id"]: float(row["score"]) for row in table(graded / "totals.csv")}
    assert totals == {**points, "absent": 0.0}
    assert sorted(points.values()) == 11 * [0.0] + 2 * [13.0] + 4 * [15.0]


def test_nbgrader_s_own_scores_would_have_been_full_marks(graded):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{graded}/autograded.db", "course") as gradebook:
        given = {s.student.id: s.notebooks[0].grades[0].auto_score for s in gradebook.assignment_submissions("a3")}
    assert given == {student: None if student in ("broken", "deleted", "twice") else 15.0 for student in given}
    assert scores(graded / "gradebook.db").count((15.0,)) == 4


def test_no_number_of_a_hidden_case_is_told(graded):
    told = " ".join(row["message"] for row in table(graded / "a3-questions.csv"))
    assert "first difference" in told and not re.search(r"\d\.\d\d", told)


def test_the_release_has_no_answer_and_the_solution_has(graded):
    release, solution = ((graded / step / "a3" / "a3.ipynb").read_text("utf-8") for step in ("release", "solution"))
    assert "raise NotImplementedError()" in release and "einsum(" not in release and "HIDDEN" not in release
    assert "einsum(" in solution and "A3.rotate  ok, 5 cases" in solution


def test_nbgrader_complains_of_no_honest_student(graded):
    """Nor does it see what was changed: minislice grades by the source's cells, whatever a submission has in theirs."""
    said = (graded / "said").read_text()
    assert re.findall(r"checksum.*for cell (\w+) has changed", said) == ["a3_rotate_test"]


# The books


@pytest.fixture
def course(prepared, tmp_path):
    """A course of two students, one of whom is right, as nbgrader's commands leave it before grading."""
    return shutil.copytree(prepared, tmp_path / "course")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from nbgrader.api import Gradebook

    tmp_path = tmp_path_factory.mktemp("prepared")
    (tmp_path / "nbgrader_config.py").write_text('c = get_config()\nc.CourseDirectory.course_id = "course"\n')
    (tmp_path / "secret").write_text("nobody guesses this")
    build("a3", tmp_path / "source" / "a3" / "a3.ipynb")
    hand_in(tmp_path, "ann", notebook(tmp_path / "source" / "a3" / "a3.ipynb"))
    hand_in(tmp_path, "bob", notebook(tmp_path / "source" / "a3" / "a3.ipynb", "rotate = None"))
    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db", "course") as gradebook:
        gradebook.add_assignment("a3")
        gradebook.add_notebook("a3", "a3")
        gradebook.add_grade_cell("a3_rotate_test", "a3", "a3", max_score=10, cell_type="code")
        gradebook.add_solution_cell("a3_rotate", "a3", "a3")
        for student in ("ann", "bob"):
            gradebook.add_student(student)
            gradebook.add_submission("a3", student)
            gradebook.find_grade("a3_rotate_test", "a3", "a3", student).auto_score = 7
        gradebook.db.commit()
    return tmp_path


def run(course, **named):
    arguments = {"name": "a3", "seed_file": course / "secret", "table": course / "a3.csv", "course": course}
    return grade(**{**arguments, "limits": LIMITS, "progress": False, **named})


def scores(gradebook):
    with contextlib.closing(sqlite3.connect(gradebook)) as database:
        return database.execute("select auto_score from grade order by auto_score").fetchall()


def test_scores_are_shares_of_the_gradebook_s_points(course):
    rows = run(course)
    assert [(row.student, row.points, row.max) for row in rows] == [("ann", 10, 10), ("bob", 0, 10)]
    assert scores(course / "gradebook.db") == [(0,), (10,)]
    assert [row["points"] for row in table(course / "a3.csv")] == ["10.0", "0.0"]


def test_grading_again_gives_the_same(course):
    assert run(course) == run(course, table=course / "again.csv")


def test_a_score_given_by_hand_is_kept(course):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course}/gradebook.db", "course") as gradebook:
        gradebook.find_grade("a3_rotate_test", "a3", "a3", "bob").manual_score = 6
        gradebook.db.commit()
    run(course)
    with Gradebook(f"sqlite:///{course}/gradebook.db", "course") as gradebook:
        assert gradebook.find_submission("a3", "bob").score == 6
        assert gradebook.find_submission("a3", "ann").score == 10


def test_an_answer_that_is_a_link_to_the_source_gets_nothing(course):
    file = course / "submitted" / "bob" / "a3" / "a3.ipynb"
    file.unlink()
    try:
        file.symlink_to(course / "source" / "a3" / "a3.ipynb")
    except OSError:
        pytest.skip("this system makes no links")
    assert run(course)[1].message == "A3.rotate  a3.ipynb is a link to another place"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"cells": 3}', '{"cells": [3]}', "[" * 100_000, '{"cells": [{"metadata": 1}]}', "\udc80"],
)
def test_a_file_that_is_no_notebook_costs_only_its_student(course, text):
    file = course / "submitted" / "bob" / "a3" / "a3.ipynb"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    ann, bob = run(course)
    assert (ann.points, bob.points) == (10, 0)
    assert bob.status in ("unreadable", "missing")


@pytest.mark.parametrize(
    ("spoil", "named", "words"),
    [
        (None, {"name": "a9"}, "there is no assignment 'a9'"),
        (None, {"name": "a4"}, "the gradebook has no assignment a4: run `nbgrader generate_assignment a4 --force`"),
        ("nbgrader_config.py", {}, "is no course: there is no nbgrader_config.py"),
        ("gradebook.db", {}, "there is no gradebook"),
        ("secret", {}, "the seed file .*secret can't be read: No such file"),
        ("source/a3/a3.ipynb", {}, "the source .*a3.ipynb can't be read"),
        ((("secret"), " \n"), {}, "the seed file .*secret is empty"),
        (("source/a3/a3.ipynb", '{"cells": []}'), {}, "has no cell a3_rotate: make it again"),
        (("gradebook.db", "not a database"), {}, "the gradebook .* can't be read"),
        (("a3.csv", "old"), {}, "a3.csv exists; write to another file"),
        *(
            (("nbgrader_config.py", config), {}, f"nbgrader_config.py has an error: {words}")
            for config, words in {
                "get_config(": "SyntaxError",
                "import nosuchmodule": "ModuleNotFoundError: No module named 'nosuchmodule'",
                "raise SystemExit(0)": "SystemExit",
                "get_config().CourseDirectory.course_id = 3": "TraitError: The 'course_id' trait",
                "get_config().CourseDirectory.directory_structure = '{name}'": "KeyError: 'name'",
            }.items()
        ),
        (("nbgrader_config.py", "get_config().CourseDirectory.db_url = 'nowhere'"), {}, "gradebook nowhere can't be"),
        (("nbgrader_config.py", "get_config().CourseDirectory.db_url = 'postgresql://db'"), {}, "No module named"),
        (
            ("submitted/eve/a3/a3.ipynb", "{}"),
            {},
            "not in the gradebook: eve; run `nbgrader autograde a3 --no-execute`",
        ),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(course, spoil, named, words):
    if isinstance(spoil, str):
        (course / spoil).unlink()
    elif spoil:
        (course / spoil[0]).parent.mkdir(parents=True, exist_ok=True)
        (course / spoil[0]).write_text(spoil[1])
    before = {path: path.read_bytes() for path in course.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=words):
        run(course, **named)
    assert {path: path.read_bytes() for path in course.rglob("*") if path.is_file()} == before


def test_a_table_that_can_not_be_written_is_an_error(course):
    with pytest.raises(ValueError, match=r"there is no folder"):
        run(course, table=course / "nowhere" / "a3.csv")


def test_an_old_gradebook_is_an_error(course):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course}/gradebook.db", "course") as gradebook:
        gradebook.add_grade_cell("a3_more_test", "a3", "a3", max_score=10, cell_type="code")
    with pytest.raises(ValueError, match="gradebook and assignment a3 differ in a3_more_test"):
        run(course)


@pytest.mark.parametrize("moment", ["the first student's", "the last student's", "the table's"])
def test_an_error_on_the_way_leaves_everything_as_it_was(course, monkeypatch, moment):
    write, table_write = Book.write, grading._write

    def fail(self, entries):
        write(self, entries[: moment == "the last student's"])
        self.gradebook.db.flush()
        raise OSError("the disk is full")

    def fail_table(file, rows):
        table_write(file, rows[:1])
        raise OSError("the disk is full")

    if moment == "the table's":
        monkeypatch.setattr(grading, "_write", fail_table)
    else:
        monkeypatch.setattr(Book, "write", fail)
    with pytest.raises(OSError, match="the disk is full"):
        run(course)
    assert scores(course / "gradebook.db") == [(7,), (7,)]
    assert not list(course.glob("a3.csv*"))


def test_where_isolation_has_holes_it_warns_in_one_line_or_stops(course, monkeypatch):
    def best(limits, hidden):
        assert course in hidden
        return Sandbox(limits, isolated=False, refused="unshare: Operation not permitted", holes=("read your files",))

    monkeypatch.setattr(Sandbox, "best", best)
    warnings = []
    run(course, warn=warnings.append)
    (warning,) = warnings
    assert "can't keep a submission from: read your files (unshare: Operation not permitted)" in warning
    with pytest.raises(ValueError, match="can't keep a submission from: read your files"):
        run(course, table=course / "again.csv", strict=True)
    assert not list(course.glob("again.csv*"))


def test_a_missing_nbgrader_is_told_with_its_command(course, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbgrader.api", None)
    with pytest.raises(ValueError, match=r'pip install "minislice\[grading\]"'):
        run(course)


def test_the_script_prints_points_or_one_json_document_or_one_error(course, capsys, monkeypatch):
    monkeypatch.setattr(grading, "Limits", lambda: LIMITS)
    common = ["a3", "--seed-file", str(course / "secret"), "--course", str(course), "--quiet", "--csv"]
    assert grading.main([*common, str(course / "one.csv")]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "ann                     10 of 10",
        "bob                      0 of 10  rotate unanswered",
    ]
    assert grading.main([*common, str(course / "two.csv"), "--json"]) == 0
    assert [row["points"] for row in json.loads(capsys.readouterr().out)] == [10, 0]
    assert grading.main([*common, str(course / "two.csv")]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1) and "two.csv" in printed.err


@pytest.mark.parametrize("name", ["grade", "assignment"])
def test_minislice_says_where_its_scripts_are(name, capsys):
    assert main([name, "a3"]) == 2
    script = re.fullmatch(r"minislice: .* python (\S+) --help\n", capsys.readouterr().err)[1]
    assert (Path(__file__).parents[1] / script).is_file()
