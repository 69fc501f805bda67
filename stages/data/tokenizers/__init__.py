"""Tokenizers: training, loading, evaluation."""
