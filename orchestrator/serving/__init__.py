"""Serve a trained model over HTTP: batches, limits, new versions without a gap. Knows no Ray."""
