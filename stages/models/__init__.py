"""Workshop of models: single-device code; parallelism is applied from outside."""
