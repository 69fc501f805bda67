"""Exact and near-duplicate search."""
