"""Commands about models: promote, rollback, models, generate."""
