"""Clusters, Ray jobs and preflight checks."""
