"""MLflow: the mirror of runs and the model registry; the store is authoritative."""
