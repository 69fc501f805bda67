"""Workshop: images with captions, from sources to shards, and the views that training sees."""
