"""Tokenizers: SentencePiece and Hugging Face, the chat template, training and evaluation."""
