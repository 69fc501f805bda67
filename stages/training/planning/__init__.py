"""Estimates of compute, memory and time."""
