"""Metrics of images and of sets of images as pure functions, each with its definition."""
