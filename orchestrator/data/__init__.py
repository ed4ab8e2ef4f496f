"""Image data: packed in shards, read in a fixed order, decoded ahead of the training."""
