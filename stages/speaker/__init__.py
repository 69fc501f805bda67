"""Synthetic descriptions by a speaker model."""
