"""Read shards in a fixed order, decode and augment the samples, and batch them for one rank."""
