"""Every format on disk: one module a kind, with its schema, writer and reader."""
