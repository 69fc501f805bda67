"""Images with captions: sources, annotation, selection, shards; the transforms of training."""
