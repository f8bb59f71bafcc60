"""Grading: students' answers run where they can do no harm, and are judged where they can't reach.

`wire` (values as JSON) and `isolation` are what the student's process, `child`, has of this; `sandbox` starts it and
talks with it. `submission` reads notebooks, `book` is nbgrader's gradebook, and `grade.py` beside this folder marks the
answers of a course. The README there says what the grader protects against, and what not.
"""
