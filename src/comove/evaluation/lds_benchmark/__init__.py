"""The linear datamodeling score: scores measured by models that were retrained on subsets."""
