"""Command line, clusters, jobs, reports and tracking."""
