"""Coreset curves, the stability of coresets over seeds and epochs, and the wrong labels that they keep."""
