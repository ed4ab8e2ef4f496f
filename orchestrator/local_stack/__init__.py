"""Ray, MLflow and S3 storage on one machine, without containers.

All services listen on 127.0.0.1 only and require a token, a password or a signature. One folder
holds the state: ports, secrets, logs and data. See docs/operations.md.
"""
