"""Grading a course: nbgrader's commands in order, some submissions, and books that are whole or as they were."""

import contextlib
import csv
import dataclasses
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
from grading.book import Book
from grading.sandbox import Limits, Sandbox

from minislice.command.cli import run_script

api = pytest.importorskip("nbgrader.api", reason="needs nbgrader")
LIMITS = Limits(cpu=2)
RIGHT = assignment.function_source("a3", "rotate")
WRONG = "np.allclose = lambda *a, **k: True\ndef rotate(weights, Q):\n    return weights, Q[1:]"
ERROR = '`rotated["W_head"] = Q[-1].T @ 1 @ weights["W_head"]`: V'
# By student: the answer, the points, the status, and words of the comment.
CLASSROOM = {
    "ada": (RIGHT, 15, "passed", "A3.rotate  ok, 5 cases"),
    "fin": (RIGHT.replace('("b_out", "b_out2")', "()"), 13, "partial", "Hint: who writes the signal besides W_out?"),
    "gus": (RIGHT.replace("Q[-1].T @", "Q[-1].T @ 1 @"), 0, "failed", ERROR),
    "hal": (WRONG, 0, "failed", "W_embd"),
    "ian": ("import os\nos._exit(0)", 0, "stopped", "the process ended before the function returned"),
    "leo": ("def rotate(w, Q):\n    raise IOError('<script>alert(1)</script>')", 0, "failed", "IOError('<script>"),
    "mia": (None, 0, "unanswered", "not written yet"),
}
# What is done to a notebook with a wrong answer, and what it is called.
TAMPERED = {
    "edited": (lambda n: cell_of(n, "a3_rotate_test").update(source="assert 1"), "failed"),
    "deleted": (lambda n: n["cells"].remove(cell_of(n, "a3_rotate_test")), "failed"),
    "twice": (lambda n: n["cells"].append({**cell_of(n, "a3_rotate"), "id": "again", "source": RIGHT}), "duplicate"),
}


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
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return file


def table(file):
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def scores(gradebook):
    with contextlib.closing(sqlite3.connect(gradebook)) as database:
        return [score for (score,) in database.execute("select auto_score from grade order by auto_score")]


@pytest.mark.slow
def test_a_course_from_an_empty_folder_to_the_solution(tmp_path, monkeypatch):
    """The instructors' commands in their order, and what every student gets."""
    program = shutil.which("nbgrader", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    environment = {**os.environ, "HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter")}

    def nbgrader(*arguments, status=0):
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr[-2000:]
        return done.stderr

    monkeypatch.setattr(grading, "Limits", lambda: LIMITS)
    monkeypatch.chdir(tmp_path)
    nbgrader("quickstart", "course")
    course = tmp_path / "course"
    monkeypatch.chdir(course)
    names = [f"{student},{student.title()},Student,{student}@x" for student in (*CLASSROOM, *TAMPERED, "bad", "absent")]
    Path("students.csv").write_text("\n".join(["id,first_name,last_name,email", *names]))
    nbgrader("db", "student", "import", "students.csv")
    assert run_script(assignment, ["build", "a3", "--to", "source/a3/a3.ipynb"]) == 0
    nbgrader("generate_assignment", "a3")
    release = Path("release/a3/a3.ipynb")
    for student, (answer, *_) in CLASSROOM.items():
        hand_in(course, student, notebook(release, answer))
    for student, (change, _) in TAMPERED.items():
        hand_in(course, student, notebook(release, WRONG, change))
    hand_in(course, "bad", "this is not a notebook")  # nbgrader fails on it, and registers it all the same
    said = nbgrader("autograde", "a3", "--no-execute", status=1)
    shutil.copy("gradebook.db", "autograded.db")
    Path("secret").write_text("nobody guesses this\n")
    assert run_script(grading, ["a3", "--seed-file", "secret", "--csv", "questions.csv", "--quiet"]) == 0
    nbgrader("generate_feedback", "a3", "--force")
    nbgrader("export", "--to", "totals.csv")
    nbgrader("generate_solution", "a3")

    rows = {row["student"]: row for row in table("questions.csv")}
    for student, (_, points, status, words) in CLASSROOM.items():
        row = rows[student]
        assert (row["status"], float(row["points"]), row["max"]) == (status, points, "15.0")
        page = Path("feedback", student, "a3", "a3.html").read_text(encoding="utf-8")
        comment = re.search(r"<b>Comments:</b>(.*?)</div>", page, flags=re.DOTALL).group(1)
        assert words in row["message"] and words in html.unescape(comment) and "<script>" not in comment
        assert f"Score: {float(points)} / 15.0" in page
    for student, status in {**{name: status for name, (_, status) in TAMPERED.items()}, "bad": "unreadable"}.items():
        assert (rows[student]["status"], rows[student]["points"]) == (status, "0.0")
    totals = {row["student_id"]: float(row["score"]) for row in table("totals.csv")}
    assert totals == {**{name: float(row["points"]) for name, row in rows.items()}, "absent": 0.0}
    told = " ".join(row["message"] for row in rows.values())
    assert "first difference" in told and not re.search(r"\d\.\d\d", told)  # no number of a hidden case

    # nbgrader alone would have given full marks to everyone; it complains of no honest student.
    assert set(scores("autograded.db")) == {None, 15.0}
    assert re.findall(r"checksum.*for cell (\w+) has changed", said) == ["a3_rotate_test"]
    solution = Path("solution/a3/a3.ipynb").read_text("utf-8")
    assert "einsum(" in solution and "A3.rotate  ok, 5 cases" in solution
    assert "raise NotImplementedError()" in release.read_text("utf-8") and "einsum(" not in release.read_text("utf-8")


# The books


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "nbgrader_config.py").write_text('c = get_config()\nc.CourseDirectory.course_id = "course"\n')
    (folder / "secret").write_text("nobody guesses this")
    source = folder / "source" / "a3" / "a3.ipynb"
    assignment.build("a3", source)
    with opened(folder) as gradebook:
        gradebook.add_assignment("a3")
        gradebook.add_notebook("a3", "a3")
        gradebook.add_grade_cell("a3_rotate_test", "a3", "a3", max_score=10, cell_type="code")
        gradebook.add_solution_cell("a3_rotate", "a3", "a3")
        for student, answer in {"ann": RIGHT, "bob": "rotate = None"}.items():
            hand_in(folder, student, notebook(source, answer))
            gradebook.add_student(student)
            gradebook.add_submission("a3", student)
            gradebook.find_grade("a3_rotate_test", "a3", "a3", student).auto_score = 7
        gradebook.db.commit()
    return folder


def opened(course):
    return api.Gradebook(f"sqlite:///{course}/gradebook.db", "course")


@pytest.fixture
def course(prepared, tmp_path):
    """A course of two students, one of whom is right, as nbgrader's commands leave it before grading."""
    return shutil.copytree(prepared, tmp_path / "course")


def run(course, **named):
    arguments = {"name": "a3", "seed_file": course / "secret", "table": course / "a3.csv", "course": course}
    return grading.grade(**{**arguments, "limits": LIMITS, "progress": False, **named})


def test_scores_are_shares_of_the_gradebook_s_points_and_come_out_the_same_again(course):
    rows = run(course)
    assert [(row.student, row.points, row.max) for row in rows] == [("ann", 10, 10), ("bob", 0, 10)]
    assert scores(course / "gradebook.db") == [0, 10]
    assert [row["points"] for row in table(course / "a3.csv")] == ["10.0", "0.0"]
    with opened(course) as gradebook:
        gradebook.find_grade("a3_rotate_test", "a3", "a3", "bob").manual_score = 6  # by a person, and kept
        gradebook.db.commit()
    assert run(course, table=course / "again.csv") == rows
    with opened(course) as gradebook:
        assert [gradebook.find_submission("a3", student).score for student in ("ann", "bob")] == [10, 6]


def test_a_file_that_is_no_notebook_costs_only_its_student(course):
    texts = ["", "{}", '{"cells": [3]}', "[" * 100_000, '{"cells": [{"metadata": 1}]}', "\udc80", "a link"]
    students = [f"s{number}" for number in range(len(texts))]
    with opened(course) as gradebook:
        for student, text in zip(students, texts, strict=True):
            gradebook.add_student(student)
            gradebook.add_submission("a3", student)
            file = hand_in(course, student, text)
        gradebook.db.commit()
    file.unlink()
    file.symlink_to(course / "source" / "a3" / "a3.ipynb")
    ann, _, *rows = run(course)
    assert ann.points == 10 and [row.student for row in rows] == students
    assert {(row.points, row.status) for row in rows} == {(0, "unreadable")}
    assert rows[-1].message == "A3.rotate  a3.ipynb is a link to another place"


CONFIG = "nbgrader_config.py"
SPOILT = [  # what is done to the course, the arguments, and words of the error
    ({}, {"name": "z9"}, "there is no assignment 'z9'"),
    ({}, {"name": "a4"}, "the gradebook has no assignment a4: run `nbgrader generate_assignment a4 --force`"),
    ({}, {"table": Path("/nowhere/a3.csv")}, "there is no folder"),
    ({CONFIG: None}, {}, "is no course: there is no nbgrader_config.py"),
    ({"gradebook.db": None}, {}, "there is no gradebook"),
    ({"gradebook.db": "not a database"}, {}, "the gradebook .* can't be read"),
    ({"secret": None}, {}, "No such file or directory: .*secret"),
    ({"secret": " \n"}, {}, "the seed file .*secret is empty"),
    ({"source/a3/a3.ipynb": None}, {}, "the source .*a3.ipynb can't be read"),
    ({"source/a3/a3.ipynb": '{"cells": []}'}, {}, "has no cell a3_rotate: make it again"),
    ({"a3.csv": "old"}, {}, "a3.csv exists; write to another file"),
    ({"submitted/eve/a3/a3.ipynb": "{}"}, {}, "not in the gradebook: eve; run `nbgrader autograde a3 --no-execute`"),
]


@pytest.mark.parametrize(("spoil", "named", "words"), SPOILT)
def test_bad_input_is_one_error_and_nothing_is_written(course, spoil, named, words):
    for name, text in spoil.items():
        if text is None:
            (course / name).unlink()
        else:
            (course / name).parent.mkdir(parents=True, exist_ok=True)
            (course / name).write_text(text)
    before = {path: path.read_bytes() for path in course.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, OSError), match=words):
        run(course, **named)
    assert {path: path.read_bytes() for path in course.rglob("*") if path.is_file()} == before


def test_a_gradebook_of_another_release_and_a_missing_nbgrader_are_errors(course, monkeypatch):
    with opened(course) as gradebook:
        gradebook.add_grade_cell("a3_more_test", "a3", "a3", max_score=10, cell_type="code")
    with pytest.raises(ValueError, match="gradebook and assignment a3 differ in a3_more_test"):
        run(course)
    monkeypatch.setitem(sys.modules, "nbgrader.api", None)
    with pytest.raises(ValueError, match=r'needs nbgrader: pip install -e "\.\[grading\]"'):
        run(course)


@pytest.mark.parametrize("moment", ["ann", "bob", "the table"])
def test_an_error_on_the_way_leaves_everything_as_it_was(course, monkeypatch, moment):
    write, table_write = Book.write, grading._write

    def fail(self, student, *score):
        write(self, student, *score)
        self.gradebook.db.flush()
        if student == moment:
            raise OSError("the disk is full")

    def fail_table(file, rows):
        table_write(file, rows[:1])
        raise OSError("the disk is full")

    monkeypatch.setattr(Book, "write", fail)
    monkeypatch.setattr(grading, "_write", fail_table)
    with pytest.raises(OSError, match="the disk is full"):
        run(course)
    assert scores(course / "gradebook.db") == [7, 7] and not list(course.glob("a3.csv*"))


def test_where_isolation_has_holes_it_warns_in_one_line_or_stops(course, monkeypatch, capsys):
    def best(limits, hidden):
        assert course in hidden and Path(grading.__file__).parent in hidden
        return Sandbox(limits, isolated=False, refused="unshare: Operation not permitted", holes=("read your files",))

    monkeypatch.setattr(Sandbox, "best", best)
    words = "can't keep a submission from: read your files (unshare: Operation not permitted)"
    run(course)
    assert words in capsys.readouterr().err.splitlines()[0]
    with pytest.raises(ValueError, match=re.escape(words)):
        run(course, table=course / "again.csv", strict=True)
    assert not list(course.glob("again.csv*"))


def test_the_script_prints_points_or_one_json_document_or_one_error(course, capsys, monkeypatch):
    row = grading.Row("bob", "a3", "rotate", 0.0, 10.0, "unanswered", "not written yet")
    monkeypatch.setattr(grading, "grade", lambda *arguments, **named: [row])
    arguments = ["a3", "--seed-file", "secret", "--course", str(course), "--csv"]
    assert run_script(grading, [*arguments, "one.csv"]) == 0
    assert capsys.readouterr().out == "bob                      0 of 10  rotate unanswered\n"
    assert run_script(grading, [*arguments, "one.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [dataclasses.asdict(row)]
    monkeypatch.undo()
    assert run_script(grading, [*arguments, str(course / "none" / "one.csv")]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
