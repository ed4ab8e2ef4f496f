"""Read shards in a fixed order, decode and augment samples, and batch them for one rank."""
