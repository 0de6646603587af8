"""The report that people read: one HTML file that opens from disk."""

from comove.report.html.evidence import Evidence, Suspects
from comove.report.html.provenance import Provenance
from comove.report.html.reading import read_brittleness, read_curves, read_lds, read_suspects, read_texts
from comove.report.html.write import write_report

__all__ = [
    "Evidence",
    "Provenance",
    "Suspects",
    "read_brittleness",
    "read_curves",
    "read_lds",
    "read_suspects",
    "read_texts",
    "write_report",
]
