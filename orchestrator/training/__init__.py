"""The training loop. It knows no Ray, no MLflow and no S3: it needs torch and pydantic alone."""
