"""The model registry: register, list, pull, sample and load versions."""
