"""The groups of options on a help page, in their order."""

__all__ = ["DATA", "EVERY", "METHODS", "ORDER", "OWN", "RESULTS", "TRAINING", "WHERE"]

METHODS, DATA, TRAINING, RESULTS = "Methods", "Data", "Training", "Scores of other libraries"
OWN, WHERE, EVERY = "Your own code and data", "Where it runs", "Every command"
ORDER = ("", METHODS, DATA, TRAINING, RESULTS, OWN, WHERE, EVERY)
"""The options of the command itself come first."""
