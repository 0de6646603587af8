"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from comove.cli.app import app, run

# isort: split
from comove.cli import demo, train, attribute, coreset, curve, stability, lds, brittleness, bank, cost, diagnose, tools  # isort: skip  # in the order of --help

__all__ = [
    "app",
    "attribute",
    "bank",
    "brittleness",
    "coreset",
    "cost",
    "curve",
    "demo",
    "diagnose",
    "lds",
    "run",
    "stability",
    "tools",
    "train",
]
