"""Parts that several models are built from. No file here is a model."""
