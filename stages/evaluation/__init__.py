"""Evaluation: measurements on held-out data, and log-likelihood scores on tasks."""
