"""The linear datamodeling score: scores held to models that were retrained without examples."""
