"""Prediction brittleness: how many queries flip once the examples that a method names are removed."""
