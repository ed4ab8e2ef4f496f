"""Building blocks shared by several models. No file here is a model."""
