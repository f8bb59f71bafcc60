"""One right answer to every question: the source of the notebooks' cells. No module imports these; `build` reads them.

What stands between the two comments SOLUTION is what the student has to write.
"""
