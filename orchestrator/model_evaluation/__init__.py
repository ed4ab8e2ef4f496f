"""Evaluate a trained model on a packed set: read, draw, extract, measure."""
