"""Read and write the shard format: tar files, a sample table for each, and one index."""
