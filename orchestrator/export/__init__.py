"""Export a trained model to other runtimes, and check that it still draws the same images."""
