"""The whole stack on one machine, without containers: a Ray head, MLflow and S3 storage.

Everything listens on 127.0.0.1 alone and asks for a token, a password or a signature. One folder
holds the state: ports, secrets, logs, data. docs/operations.md has what was found out about it.
"""
