"""Synthetic questions for `augment`: a speaker model generates them, filters select them."""
