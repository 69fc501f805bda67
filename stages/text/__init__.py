"""Text work: sources and readers, repair, language, rules, near-duplicates, docstrings."""
