"""Ray tasks over shards."""
