"""Costs, by the paper's formulas and as measured on our own runs."""
