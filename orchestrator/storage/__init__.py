"""Read and write bytes by key in a local folder or an S3-compatible object store."""
