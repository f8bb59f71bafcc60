"""Grading: students' answers run where they can do no harm, and are judged where they can't reach.

`wire` (values as JSON) and `isolation` are what the student's process, `child`, has of this; `sandbox` starts it and
talks with it. `submission` reads notebooks, `marking` marks one answer, `book` is nbgrader's gradebook, and `grade.py`
beside this folder goes through a course.

The process of a call gets the call's arguments and nothing else: no expected value, no secret, no other case, not
minislice. What it sends back is a claim, plain values, and is judged here. Whatever a forged message could say, the
function could have returned. Right functions and mutants come to a student's check in an order drawn from the secret,
each with a random generator of its own: a check that counts its calls, by whatever channel, learns nothing. The README
beside this folder says what the grader protects against, and what not.
"""
