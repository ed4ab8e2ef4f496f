"""Image datasets: packed in shards, read in a fixed order, decoded ahead of training."""
