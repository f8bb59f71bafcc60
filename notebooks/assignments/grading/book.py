"""nbgrader's books: who handed in what, and where scores and comments are written, all of them or none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minislice.teaching.assignments.exercise import Assignment, Task

CONFIG = "nbgrader_config.py"


class Book:
    """One assignment in a course's gradebook: its `source`, the students' `files`, and `most` points by question."""

    def __init__(self, gradebook: Any, course: Any, assignment: Assignment):
        from nbgrader.api import MissingEntry

        self.gradebook, self.assignment, name = gradebook, assignment, assignment.name
        self.source = Path(course.format_path(course.source_directory, ".", name)) / f"{name}.ipynb"
        remedy = f"run `nbgrader generate_assignment {name} --force`"
        try:
            notebook = gradebook.find_notebook(name, name)
        except MissingEntry:
            raise ValueError(f"the gradebook has no assignment {name}: {remedy}") from None
        written = {cell.name for cell in notebook.solution_cells}
        points = {cell.name: cell.max_score for cell in notebook.grade_cells if cell.name not in written}
        tests = {assignment.test_id(question): question.name for question in assignment.questions}
        if unknown := sorted(points.keys() ^ tests.keys()):
            raise ValueError(f"gradebook and assignment {name} differ in {', '.join(unknown)}: {remedy}")
        self.most = {tests[cell]: most for cell, most in points.items()}
        students = sorted(submission.student.id for submission in gradebook.assignment_submissions(name))
        submitted = Path(course.root) / course.submitted_directory
        if absent := sorted({path.parts[-3] for path in submitted.glob(f"*/{name}/*.ipynb")} - {*students}):
            remedy = f"run `nbgrader autograde {name} --no-execute` first"
            raise ValueError(f"not in the gradebook: {', '.join(absent)}; {remedy}")
        if not students:
            raise ValueError(f"nobody has handed in {name}")
        folders = {one: Path(course.format_path(course.submitted_directory, one, name)) for one in students}
        self.files = {one: folder / self.source.name for one, folder in folders.items()}
        gradebook.db.rollback()  # grading takes long: others may write meanwhile

    def write(self, student: str, question: Task, points: float, lines: Sequence[str]) -> None:
        """Write a score, and a comment, to be committed by `opened`; a score that a person gave goes before it."""
        name = self.assignment.name
        grade = self.gradebook.find_grade(self.assignment.test_id(question), name, name, student)
        grade.auto_score = points
        grade.needs_manual_grade = grade.manual_score is not None
        comment = self.gradebook.find_comment(self.assignment.answer_id(question), name, name, student)
        comment.auto_comment = "\n".join("    " + line for line in lines)  # Markdown shows code as it is, also HTML


@contextmanager
def opened(course: Path, assignment: Assignment) -> Iterator[Book]:
    """The book of an assignment; what is written in it is kept if the block ends without an exception, else nothing."""
    try:
        from nbgrader.api import Gradebook
    except ImportError:
        raise ValueError('grading needs nbgrader: pip install -e ".[grading]" in the checkout of minislice') from None
    from nbgrader.coursedir import CourseDirectory
    from sqlalchemy.exc import SQLAlchemyError
    from traitlets.config import Config, PyFileConfigLoader

    course = Path(course).resolve()
    if not (course / CONFIG).is_file():
        raise ValueError(f"{course} is no course: there is no {CONFIG} (give its folder with --course)")
    config = Config({"CourseDirectory": {"root": str(course)}})
    config.merge(PyFileConfigLoader(CONFIG, path=str(course)).load_config())
    directory = CourseDirectory(config=config)
    url = directory.db_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        raise ValueError(f"there is no gradebook {url}: run `nbgrader generate_assignment {assignment.name}` first")
    try:
        with Gradebook(url, directory.course_id) as gradebook:  # what isn't committed is forgotten
            yield Book(gradebook, directory, assignment)
            gradebook.db.commit()
    except SQLAlchemyError as error:
        raise ValueError(f"nothing was written, the gradebook {url} said: {error}") from None
