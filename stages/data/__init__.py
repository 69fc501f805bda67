"""Formats on disk: one module per artifact kind, with schema, writer and reader."""
