"""The command line: parse, call, print. Everything heavy is imported inside the commands."""

from comove.cli.app import app, run

# isort: split
from comove.cli import demo, train, explore, attribute, coreset, curve, stability, lds, brittleness, check, bank, cost  # isort: skip  # in the order of --help
from comove.cli import diagnose, clean, report, tools  # isort: skip

__all__ = [
    "app",
    "attribute",
    "bank",
    "brittleness",
    "check",
    "clean",
    "coreset",
    "cost",
    "curve",
    "demo",
    "diagnose",
    "explore",
    "lds",
    "report",
    "run",
    "stability",
    "tools",
    "train",
]
