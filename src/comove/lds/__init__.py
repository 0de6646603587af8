"""Where the linear datamodeling score is computed, on arrays and against a bank."""
