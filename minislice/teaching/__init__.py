"""Teaching: the lecture, the assignments and their grading."""
