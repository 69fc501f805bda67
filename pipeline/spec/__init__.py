"""Reading and checking a pipeline file."""
