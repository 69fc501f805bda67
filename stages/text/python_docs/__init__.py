"""Documents, questions and preferences from Python's own documentation."""
