"""Workshop of generation: batched sampling from a model with a static cache."""
