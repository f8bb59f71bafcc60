"""Grading a course: nbgrader's commands in order, some submissions, and books that are whole or as they were."""

import csv
import functools
import html
import json
import re
import shutil
import sys
from pathlib import Path

import assignment
import grade as grading
import pytest
from grading.sandbox import Sandbox

from minislice.command.cli import run_script

api = pytest.importorskip("nbgrader.api", reason="needs nbgrader")
api.get_alembic_version = functools.cache(api.get_alembic_version)  # it starts a process for each new gradebook
RIGHT = assignment.function_source("a3", "rotate")
WRONG = "np.allclose = lambda *a, **k: True\ndef rotate(weights, Q):\n    return weights, Q[1:]"
# By student: the answer, what else is done to the notebook, the points, the status, and words of the comment.
CLASSROOM = {
    "ada": (f"{RIGHT}\n\nnp.linalg.qr?\ncheck(rotate)\ndisplay(3)", None, 15, "passed", "ok, 5 cases"),
    "fin": (RIGHT.replace('("b_out", "b_out2")', "()"), None, 13, "partial", "Hint: who writes the signal besides"),
    "hal": (WRONG, None, 0, "failed", "W_embd"),
    "leo": ("def rotate(w, Q):\n    raise IOError('<script>alert(1)')", None, 0, "failed", "IOError('<script>"),
    "mia": (None, None, 0, "unanswered", "not written yet"),
    "edited": (WRONG, lambda n: cell_of(n, "a3_rotate_test").update(source="assert 1"), 0, "failed", "W_embd"),
    "dup": (  # nbgrader stops here, before those that follow
        WRONG,
        lambda n: n["cells"].append({**cell_of(n, "a3_rotate"), "id": "again", "source": RIGHT}),
        *(0, "duplicate", "more than one cell"),
    ),
}


def notebook(file, answer=None, change=None):
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
        return {row["student"]: row for row in csv.DictReader(lines)}


def opened(course):
    return api.Gradebook(f"sqlite:///{course}/gradebook.db", "course")


def scores(course):
    with opened(course) as gradebook:
        return {each.student.id: each.score for each in gradebook.assignment_submissions("a3")}


def begun(course):
    (course / "nbgrader_config.py").write_text('c = get_config()\nc.CourseDirectory.course_id = "course"\n')
    (course / "secret").write_text("nobody guesses this\n")
    assignment.build("a3", course / "source" / "a3" / "a3.ipynb")
    return course


@pytest.mark.slow
def test_nbgraders_commands_and_ours_give_every_student_what_the_answer_is_worth(tmp_path, monkeypatch, capsys):
    from jupyter_core.application import NoStart
    from nbgrader.apps.nbgraderapp import NbGraderApp

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path)

    def nbgrader(*arguments, status=0):
        """Its command, in this process: four starts of its own take longer than all that it does."""
        app = NbGraderApp.instance()
        app.initialize([*arguments])
        with pytest.raises((NoStart, SystemExit)) as ended:  # NoStart: a subcommand has done the work
            app.start()
        app.reset()
        said = capsys.readouterr().err
        assert getattr(ended.value, "code", 0) == status, said[-2000:]
        return said

    course = begun(tmp_path)
    with opened(course) as gradebook:
        for student in (*CLASSROOM, "bad"):
            gradebook.add_student(student)
    nbgrader("generate_assignment", "a3")
    release = course / "release" / "a3" / "a3.ipynb"
    for student, (answer, change, *_) in CLASSROOM.items():
        hand_in(course, student, notebook(release, answer, change))
    hand_in(course, "bad", "this is not a notebook")  # nbgrader fails on it, and registers it all the same
    autograde = ["autograde", "a3", "--no-execute"]
    assert "old version of the nbgrader metadata format" in nbgrader(*autograde, status=1).replace("\n    ", "")
    said = nbgrader(*autograde, "--CourseDirectory.student_id_exclude=dup", status=1)
    given = set(scores(course).values())
    files = ["--seed-file", str(course / "secret"), "--csv", str(course / "a3.csv"), "--course", str(course)]
    assert run_script(grading, ["a3", *files, "--quiet"]) == 0
    nbgrader("generate_feedback", "a3", "--force")

    rows = table(course / "a3.csv")
    assert (rows["bad"]["status"], rows["bad"]["points"]) == ("unreadable", "0.0")
    for student, (*_, points, status, words) in CLASSROOM.items():
        row = rows[student]
        assert (row["status"], float(row["points"]), row["max"]) == (status, points, "15.0") and words in row["message"]
        if status == "duplicate":
            continue  # nbgrader has no page for it
        page = (course / "feedback" / student / "a3" / "a3.html").read_text(encoding="utf-8")
        comment = re.search(r"<b>Comments:</b>(.*?)</div>", page, flags=re.DOTALL).group(1)
        assert words in html.unescape(comment) and "<script>" not in comment
        assert f"Score: {float(points)} / 15.0" in page
    assert scores(course) == {name: float(row["points"]) for name, row in rows.items()}
    told = " ".join(row["message"] for row in rows.values())
    assert "first difference" in told and not re.search(r"\d\.\d\d", told)  # no number of a hidden case
    # nbgrader alone would have given full marks to everyone; it complains of no honest student.
    assert given == {0.0, 15.0}
    assert re.findall(r"checksum.*for cell (\w+) has changed", said) == ["a3_rotate_test"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = begun(tmp_path_factory.mktemp("prepared"))
    with opened(folder) as gradebook:
        gradebook.add_assignment("a3")
        gradebook.add_notebook("a3", "a3")
        gradebook.add_grade_cell("a3_rotate_test", "a3", "a3", max_score=10, cell_type="code")
        gradebook.add_solution_cell("a3_rotate", "a3", "a3")
        for student, answer in {"ann": RIGHT, "bob": "rotate = None"}.items():
            hand_in(folder, student, notebook(folder / "source" / "a3" / "a3.ipynb", answer))
            gradebook.add_student(student)
            gradebook.add_submission("a3", student)
            gradebook.find_grade("a3_rotate_test", "a3", "a3", student).auto_score = 7
        gradebook.db.commit()
    return folder


@pytest.fixture
def course(prepared, tmp_path):
    """A course of two students, one of whom is right, as nbgrader's commands leave it before grading."""
    return shutil.copytree(prepared, tmp_path / "course")


def run(course, **named):
    arguments = {"name": "a3", "seed_file": course / "secret", "table": course / "a3.csv", "course": course}
    return grading.grade(**{**arguments, "sandbox": Sandbox(cpu=2), "progress": False, **named})


def test_scores_are_shares_of_the_gradebook_s_points_and_come_out_the_same_again(course):
    rows = run(course)
    assert [(row["student"], row["points"], row["max"]) for row in rows] == [("ann", 10, 10), ("bob", 0, 10)]
    assert scores(course) == {"ann": 10, "bob": 0}
    assert [row["points"] for row in table(course / "a3.csv").values()] == ["10.0", "0.0"]
    with opened(course) as gradebook:
        gradebook.find_grade("a3_rotate_test", "a3", "a3", "bob").manual_score = 6  # by a person, and kept
        gradebook.db.commit()
    assert run(course, table=course / "again.csv") == rows
    assert scores(course) == {"ann": 10, "bob": 6}


def test_a_file_that_is_no_notebook_costs_only_its_student(course):
    texts = ["", '{"cells": [3]}', "[" * 100_000, "\udc80", "another name", "a link"]
    students = [f"s{number}" for number in range(len(texts))]
    with opened(course) as gradebook:
        for student, text in zip(students, texts, strict=True):
            gradebook.add_student(student)
            gradebook.add_submission("a3", student)
            file = hand_in(course, student, text)
        gradebook.db.commit()
    other = course / "submitted" / students[-2] / "a3"
    (other / "a3.ipynb").rename(other / "a3-final.ipynb")
    file.unlink()
    file.symlink_to(course / "source" / "a3" / "a3.ipynb")
    (course / "submitted" / "eve" / "a3").mkdir(parents=True)  # nbgrader passes over it
    ann, _, *rows = run(course)
    assert ann["points"] == 10 and [row["student"] for row in rows] == students
    assert {(row["points"], row["status"]) for row in rows} == {(0, "unreadable")}
    assert rows[-2]["message"] == "there is no a3.ipynb, but a3-final.ipynb"
    assert rows[-1]["message"] == "a3.ipynb is a link to another place"


SPOILT = {  # words of the error: what is done to the course, and the arguments
    "there is no assignment 'z9'": ({}, {"name": "z9"}),
    "the gradebook has no assignment a4: run `nbgrader generate_assignment a4 --force`": ({}, {"name": "a4"}),
    "is no course: there is no nbgrader_config.py": ({"nbgrader_config.py": None}, {}),
    "there is no gradebook": ({"gradebook.db": None}, {}),
    "the source .*a3.ipynb can't be used: there is no a3.ipynb": ({"source/a3/a3.ipynb": None}, {}),
    "No such file or directory: .*secret": ({"secret": None}, {}),
    "the seed file .*secret is empty": ({"secret": " \n"}, {}),
    "this answer is not there .grade_id a3_rotate": ({"source/a3/a3.ipynb": '{"cells": []}'}, {}),
    "a3.csv exists; write to another file": ({"a3.csv": "old"}, {}),
    "not in the gradebook: eve; run `nbgrader autograde a3": ({"submitted/eve/a3/a3.ipynb": "{}"}, {}),
}


@pytest.mark.parametrize("words", SPOILT)
def test_bad_input_is_one_error_and_nothing_is_written(course, words):
    spoil, named = SPOILT[words]
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


def test_an_error_at_the_end_leaves_everything_as_it_was(course, monkeypatch):
    write = csv.DictWriter.writerows

    def fail(*arguments):
        write(*arguments)
        raise OSError("the disk is full")

    monkeypatch.setattr(csv.DictWriter, "writerows", fail)
    monkeypatch.setattr(grading, "mark", lambda *arguments: grading.Mark(1.0, "ok"))
    with pytest.raises(OSError, match="the disk is full"):
        run(course)
    assert scores(course) == {"ann": 7, "bob": 7} and not list(course.glob("a3.csv*"))


def test_where_namespaces_are_refused_it_warns_in_one_line_or_stops(course, monkeypatch, capsys):
    call = Sandbox.call

    def refused(self, *arguments, **named):
        if self.isolated:
            raise OSError("unshare: Operation not permitted")
        return call(self, *arguments, **named)

    monkeypatch.setattr(Sandbox, "call", refused)
    words = "can't isolate submissions (unshare: Operation not permitted)"
    assert [row["points"] for row in run(course)] == [10, 0]
    assert words in capsys.readouterr().err.splitlines()[0]
    with pytest.raises(ValueError, match=re.escape(words)):
        run(course, table=course / "again.csv", strict=True)
    assert not list(course.glob("again.csv*"))


def test_the_script_prints_points_or_one_json_document_or_one_error(course, capsys, monkeypatch):
    row = {"student": "bob", "question": "rotate", "points": 0.0, "max": 10.0, "status": "unanswered"}
    monkeypatch.setattr(grading, "grade", lambda *arguments, **named: [row])
    arguments = ["a3", "--seed-file", "secret", "--course", str(course), "--csv"]
    assert run_script(grading, [*arguments, "one.csv"]) == 0
    assert capsys.readouterr().out == "bob                      0 of 10  rotate unanswered\n"
    assert run_script(grading, [*arguments, "one.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row]
    monkeypatch.undo()
    assert run_script(grading, [*arguments, str(course / "none" / "one.csv")]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
