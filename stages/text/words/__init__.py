"""Word tokenization and per-word tables."""
