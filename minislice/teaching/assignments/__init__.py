"""Assignments: nine in which a student builds SliceGPT in NumPy, three in which they catch mistakes, and a capstone.

`exercise` says what a question is and how an answer is judged. `texts/` has the questions in words; `a1` to `a9`, `m1`
to `m3` and `c1` have their cases and judges. A student's notebook calls `feedback`. The answers, the builder and the
grader are in `notebooks/assignments`. Nothing here but the capstone's judge needs the rest of minislice.
"""
