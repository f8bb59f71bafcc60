"""Assignments: seven in which a student builds SliceGPT in NumPy, three in which they catch mistakes.

`exercise` says what a question is and how an answer is judged, `a1` .. `a7` and `m1` .. `m3` are the questions,
`feedback` is what a student's notebook calls. Answers, builder and grader are in `notebooks/assignments`.
Nothing here needs the rest of minislice.
"""
