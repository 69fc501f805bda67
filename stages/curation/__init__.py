"""Curation core: what cleaning text and preparing images with captions have in common."""
