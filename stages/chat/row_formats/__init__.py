"""Formats of conversations and rankings, one file per format."""
