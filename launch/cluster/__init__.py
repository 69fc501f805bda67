"""Clusters, jobs and preflight checks."""
