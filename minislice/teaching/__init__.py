"""The lecture's figures and set-up, the assignments and their grading."""
