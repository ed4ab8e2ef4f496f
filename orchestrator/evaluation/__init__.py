"""Image metrics as pure functions, each with its definition."""
