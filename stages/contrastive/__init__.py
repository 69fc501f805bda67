"""Contrastive training: pair data, losses, gradient caching, evaluation."""
