"""Finding wrong labels: rankings by suspicion, measured by labels that were flipped on purpose."""
