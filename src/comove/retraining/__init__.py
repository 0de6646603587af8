"""Retraining banks: models retrained on subsets of the training data, kept on disk and extended at will."""
