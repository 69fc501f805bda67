"""Distributed execution of data work: tasks over shards, cancellation between batches."""
