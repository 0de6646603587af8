"""comove: which training examples a prediction depends on, and which are worth keeping."""

__version__ = "0.1.0"
