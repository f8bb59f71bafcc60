"""nbgrader's books: who handed in what, and where scores and comments are written, all of them or none."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minislice.checks import require_package
from minislice.teaching.assignments.exercise import Assignment, MutationQuestion, Question


@dataclass(frozen=True)
class Entry:
    """What is written for one question of a student's: points, and the comment below the answer."""

    student: str
    question: Question | MutationQuestion
    points: float
    comment: str


class Book:
    """One assignment in a course's gradebook; the course has nbgrader's usual folders.

    Args:
        source: the assignment's notebook with the answers.
        folders: where each student's submission is, by student.
        most: points of each question, by the name of its function.
    """

    def __init__(self, gradebook: Any, course: Any, assignment: Assignment):
        self.gradebook, self.course, self.assignment = gradebook, course, assignment
        self.source = self._folder(course.source_directory, ".") / f"{assignment.name}.ipynb"
        self.most = self._points()
        self.folders = self._submissions()
        gradebook.db.rollback()  # grading takes long: others may write meanwhile

    def _folder(self, step: str, student: str) -> Path:
        return Path(self.course.format_path(step, student, self.assignment.name))

    def _points(self) -> Mapping[str, float]:
        from nbgrader.api import MissingEntry

        name = self.assignment.name
        again = f"run `nbgrader generate_assignment {name} --force`"
        try:
            notebook = self.gradebook.find_notebook(name, name)
        except MissingEntry:
            raise ValueError(f"the gradebook has no assignment {name}: {again}") from None
        written = {cell.name for cell in notebook.solution_cells}
        cells = {cell.name: cell.max_score for cell in notebook.grade_cells if cell.name not in written}
        tests = {self.assignment.test_id(question): question.name for question in self.assignment.questions}
        if unknown := sorted(cells.keys() ^ tests.keys()):
            raise ValueError(f"gradebook and assignment {name} differ in {', '.join(unknown)}: {again}")
        return {tests[cell]: points for cell, points in cells.items()}

    def _submissions(self) -> Mapping[str, Path]:
        name = self.assignment.name
        booked = {submission.student.id for submission in self.gradebook.assignment_submissions(name)}
        submitted = Path(self.course.root) / self.course.submitted_directory
        placed = {path.parent.name for path in submitted.glob(f"*/{name}")}
        if absent := sorted(placed - booked):
            raise ValueError(
                f"not in the gradebook: {', '.join(absent)}; run `nbgrader autograde {name} --no-execute` first"
            )
        if not booked:
            raise ValueError(f"nobody has handed in {name}")
        return {student: self._folder(self.course.submitted_directory, student) for student in sorted(booked)}

    def write(self, entries: Sequence[Entry]) -> None:
        """Write every score and comment, to be committed by `opened`.

        A score that a person gave (`manual_score`) is kept and goes before ours in nbgrader's sums.
        """
        name = self.assignment.name
        for entry in entries:
            grade = self.gradebook.find_grade(self.assignment.test_id(entry.question), name, name, entry.student)
            grade.auto_score = entry.points
            grade.needs_manual_grade = grade.manual_score is not None
            cell = self.assignment.answer_id(entry.question)
            self.gradebook.find_comment(cell, name, name, entry.student).auto_comment = entry.comment


@contextmanager
def opened(course: Path, assignment: Assignment) -> Iterator[Book]:
    """The book of an assignment; what is written in it is kept if the block ends without an exception, else nothing.

    Args:
        course: the folder with nbgrader_config.py.

    Raises:
        ValueError: nbgrader is not installed, there is no course, no such assignment in it, or the gradebook is locked.
    """
    require_package("nbgrader", "grading", "grading")
    from nbgrader.api import Gradebook
    from nbgrader.coursedir import CourseDirectory
    from sqlalchemy.exc import SQLAlchemyError
    from traitlets.config import Config, PyFileConfigLoader

    course = Path(course).resolve()
    if not (course / "nbgrader_config.py").is_file():
        raise ValueError(f"{course} is no course: there is no nbgrader_config.py (give its folder with --course)")
    try:  # the config is a program, which may raise anything, also where nbgrader first uses what it says
        config = Config({"CourseDirectory": {"root": str(course)}})
        config.merge(PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config())
        directory = CourseDirectory(config=config)
        directory.format_path(directory.source_directory, ".", assignment.name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{course / 'nbgrader_config.py'} has an error: {type(error).__name__}: {error}") from None
    file = Path(directory.db_url.removeprefix("sqlite:///"))
    if directory.db_url.startswith("sqlite:///") and not file.is_file():
        raise ValueError(f"there is no gradebook {file}: run `nbgrader generate_assignment {assignment.name}` first")
    try:
        gradebook = Gradebook(directory.db_url, directory.course_id)
    except (SQLAlchemyError, ImportError) as error:  # a database whose driver isn't installed
        raise ValueError(f"the gradebook {directory.db_url} can't be read: {error}") from None
    try:
        yield Book(gradebook, directory, assignment)
        gradebook.db.commit()
    except SQLAlchemyError as error:
        raise ValueError(f"nothing was written, the gradebook {file} said: {error}") from None
    finally:
        gradebook.db.rollback()  # no effect after a commit
        gradebook.close()
