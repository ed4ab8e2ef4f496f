"""The shard format: tar files, a table of samples for each, and one index."""
