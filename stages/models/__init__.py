"""Model families and what they share: single-device code; training applies the parallelism."""
