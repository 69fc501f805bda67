"""Removal of evaluation data from a corpus."""
