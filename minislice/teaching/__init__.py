"""The notebooks' figures and set-up, assignments and grading."""
