"""Read and write bytes by key in a local folder or an object store."""
