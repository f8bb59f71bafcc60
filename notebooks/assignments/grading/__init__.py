"""Grading: students' answers run where they can do no harm, and are judged where they can't reach.

`wire` (values as JSON) and `isolation` are what the student's process, `child`, has of this; `sandbox` starts it and
talks with it. `submission` reads notebooks, `marking` marks one answer, `book` is nbgrader's gradebook, and `grade.py`
beside this folder goes through a course. The README there says what the grader protects against, and what not.
"""
