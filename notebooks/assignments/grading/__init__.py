"""Grading: students' answers run where they can do no harm, and are judged where they can't reach.

`wire` (values as JSON) and `isolation` are what the student's process, `child`, has of this; `sandbox` starts it and
talks with it. `submission` reads notebooks, `marking` marks one answer, `book` is nbgrader's gradebook, and `grade.py`
beside this folder goes through a course.

- A function is called in a new process for each case, which gets the case's arguments and nothing else: no expected
  value, no secret, no other case, not minislice. What it sends back is a claim, plain values, and is judged here.
  Patching libraries, forging output, leaving early or deleting the test cells therefore gives nothing: whatever a
  forged message could say, the function could have returned.
- The candidates of a student's check come in an order drawn from the secret, each with a random generator of its own. A
  check that could count its calls (by what Linux keeps in memory of a file that it reads) learns nothing by it.
- A call that takes too long, too much memory or crashes costs its own question and no other.
- Only the cells for answers are read, by their grade_id; all others come from the course's source.
- All scores are written or none. Comments have no number of a hidden case.

Where Linux allows namespaces (root always, other users on most systems; tried out at every start), the process sees no
file but the standard library and NumPy, has no network, and can neither start nor see a process. Elsewhere `grade.py`
says in one line what a submission could do, and `--strict` stops there. macOS does not limit memory, and Windows only
the time by the clock.

What nothing here protects against: another's work, or an assistant's. A function can hide that it changed its
arguments. The shape of a wrong result, or the line that raised, can carry a few numbers of a hidden case's arguments
out into the comment: they are arguments, not answers. Whoever can break Linux's isolation can break out.
"""
