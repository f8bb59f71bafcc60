"""Assignments: seven in which a student builds SliceGPT in NumPy, three in which they catch mistakes.

`exercise` says what a question is and how an answer is judged. `texts/` has the questions in words, `a1` .. `a9` and
`m1` .. `m3` have their cases and judges. A student's notebook calls `feedback`. The answers,
the builder and the grader are in `notebooks/assignments`. Nothing here needs the rest of minislice.
"""
