"""Networks that turn images into features, each with a name that becomes part of a metric's."""
