"""Formats of text that comes in: encodings, csv, JSON, and characters that UTF-8 cannot hold."""
