"""Artifacts, leases and crash-safe file I/O."""
