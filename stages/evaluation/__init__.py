"""Tasks, log-likelihoods and perplexity."""
