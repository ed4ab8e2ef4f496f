"""The models, one file per paper. They need only torch and pydantic."""
