"""Synthetic questions: a speaker model generates them, filters select them."""
