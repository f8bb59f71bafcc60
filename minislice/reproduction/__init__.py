"""The paper's tables, run again: what is in them, how each row is measured, and a report of both."""
