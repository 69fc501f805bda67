"""Llama, Qwen3 and Switch decoders."""
