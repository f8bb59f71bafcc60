"""The lecture's figures and set-up, and the questions, judges and feedback of the assignments."""
