"""Commands of the model registry: promote, rollback, models, generate."""
