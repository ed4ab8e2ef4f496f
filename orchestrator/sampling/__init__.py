"""Draw images with a trained model: a few as files, or as many as a data set has."""
