"""Text generation: batched sampling with a KV cache, and likelihoods of given continuations."""
