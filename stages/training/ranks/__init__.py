"""Rank processes: launch, handshake, watchdog."""
