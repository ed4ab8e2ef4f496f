"""The models: one file, one paper each. They need torch and pydantic alone."""
