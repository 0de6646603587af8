"""Hunting for wrong labels: rank them by suspicion, and hold the ranking to labels that were flipped on purpose."""
